/* A provider that costs next to nothing, so that what is measured is the proxy in front of it.

   Answers every request with one small JSON; a body with "stream":true gets 30 server-sent events, each written by
   itself; with "paced":true, too, one event a second for as long as the caller stays. One thread, epoll.
   cc -O2 -o mock_provider mock_provider.c && ./mock_provider PORT */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define EVENTS 30
#define FDS 65536
#define BUFFER (64 * 1024)

static const char EVENT[] = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
  "\"model\":\"gpt-4o-mini\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"token\"},\"finish_reason\":null}]}\n\n";
static const char LAST[] = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
  "\"model\":\"gpt-4o-mini\",\"choices\":[],\"usage\":{\"prompt_tokens\":110,\"completion_tokens\":28,"
  "\"total_tokens\":138}}\n\ndata: [DONE]\n\n";
static const char STREAM_HEAD[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
  "x-request-id: req_1\r\nopenai-processing-ms: 12\r\nx-ratelimit-limit-requests: 5000000\r\n"
  "x-ratelimit-remaining-requests: 4999999\r\nx-ratelimit-reset-requests: 12ms\r\ntransfer-encoding: chunked\r\n\r\n";

struct connection { size_t used; int paced; char *data; };
static struct connection connections[FDS];
static char small[4096], event_chunk[512], last_chunk[512];
static size_t small_size, event_size, last_size;
static int epoll, most;

static void drop(int fd) {
  free(connections[fd].data);
  memset(&connections[fd], 0, sizeof connections[fd]);
  close(fd);
}

/* The answers are far smaller than a socket's buffer: what does not fit ends the connection. */
static int put(int fd, const char *data, size_t size) {
  return send(fd, data, size, MSG_NOSIGNAL) == (ssize_t)size ? 0 : -1;
}

static int answer(int fd, const char *body, size_t size) {
  if (!memmem(body, size, "\"stream\":true", 13)) return put(fd, small, small_size);
  if (put(fd, STREAM_HEAD, sizeof STREAM_HEAD - 1)) return -1;
  if (memmem(body, size, "\"paced\":true", 12)) {
    connections[fd].paced = 1;
    return put(fd, event_chunk, event_size);
  }
  for (int count = 1; count < EVENTS; count++)
    if (put(fd, event_chunk, event_size)) return -1;
  return put(fd, last_chunk, last_size);
}

/* Answer every whole request in the buffer; -1 when the connection is of no more use. */
static int serve(int fd) {
  struct connection *here = &connections[fd];
  for (;;) {
    char *end = memmem(here->data, here->used, "\r\n\r\n", 4);
    if (!end) return here->used == BUFFER ? -1 : 0;
    size_t head = (size_t)(end - here->data) + 4, length = 0;
    for (char *line = here->data; line < end; line = (char *)memchr(line, '\n', (size_t)(end + 2 - line)) + 1)
      if (!strncasecmp(line, "content-length:", 15)) length = strtoul(line + 15, NULL, 10);
    if (head + length > BUFFER) return -1;
    if (here->used < head + length) return 0;
    if (answer(fd, here->data + head, length)) return -1;
    here->used -= head + length;
    memmove(here->data, here->data + head + length, here->used);
  }
}

static void take(int fd) {
  struct connection *here = &connections[fd];
  if (!here->data) here->data = malloc(BUFFER);
  for (;;) {
    ssize_t got = recv(fd, here->data + here->used, BUFFER - here->used, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) { drop(fd); return; }
    here->used += (size_t)got;
    if (serve(fd)) { drop(fd); return; }
    if (!here->used) {
      /* Ten thousand open streams need no buffer each. */
      if (here->paced) { free(here->data); here->data = NULL; }
      return;
    }
  }
}

int main(int count, char **arguments) {
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  signal(SIGPIPE, SIG_IGN);
  char body[2048], filler[901];
  memset(filler, 'y', 900);
  filler[900] = 0;
  int size = snprintf(body, sizeof body,
    "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"gpt-4o-mini\","
    "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},\"finish_reason\":\"stop\"}],"
    "\"usage\":{\"prompt_tokens\":110,\"completion_tokens\":225,\"total_tokens\":335}}", filler);
  small_size = (size_t)snprintf(small, sizeof small,
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_1\r\nopenai-processing-ms: 12\r\n"
    "x-ratelimit-limit-requests: 5000000\r\nx-ratelimit-remaining-requests: 4999999\r\n"
    "x-ratelimit-reset-requests: 12ms\r\ncontent-length: %d\r\n\r\n%s", size, body);
  event_size = (size_t)snprintf(event_chunk, sizeof event_chunk, "%zx\r\n%s\r\n", sizeof EVENT - 1, EVENT);
  last_size = (size_t)snprintf(last_chunk, sizeof last_chunk, "%zx\r\n%s\r\n0\r\n\r\n", sizeof LAST - 1, LAST);

  int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(count > 1 ? (uint16_t)atoi(arguments[1]) : 0)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) { perror("bind"); return 1; }
  int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  struct itimerspec tick = {{1, 0}, {1, 0}};
  timerfd_settime(timer, 0, &tick, NULL);
  epoll = epoll_create1(0);
  struct epoll_event wanted = {.events = EPOLLIN, .data.fd = listener}, ready[512];
  epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &wanted);
  wanted.data.fd = timer;
  epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &wanted);
  for (;;) {
    int many = epoll_wait(epoll, ready, 512, -1);
    for (int index = 0; index < many; index++) {
      int fd = ready[index].data.fd;
      if (fd == timer) {
        uint64_t ticks;
        if (read(timer, &ticks, sizeof ticks) < 0) continue;
        for (int each = 0; each <= most; each++)
          if (connections[each].paced && put(each, event_chunk, event_size)) drop(each);
      } else if (fd == listener) {
        int caller;
        while ((caller = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
          if (caller >= FDS) { close(caller); continue; }
          setsockopt(caller, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
          if (caller > most) most = caller;
          wanted.data.fd = caller;
          epoll_ctl(epoll, EPOLL_CTL_ADD, caller, &wanted);
        }
      } else {
        take(fd);
      }
    }
  }
}
