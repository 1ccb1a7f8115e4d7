// People sign in with a certified OpenID provider (oidc-provider), in a real browser (Chromium).
import assert from 'node:assert/strict';
import http from 'node:http';
import { after, before, test } from 'node:test';
import Provider from 'oidc-provider';
import { chromium } from 'playwright-core';
import { bearer, issuer } from './world.mjs';

const { OIDC_ISSUER, OIDC_CLIENT_ID, OIDC_CLIENT_SECRET, CHROMIUM = '/usr/bin/chromium', SCREENSHOTS } = process.env;
const people = {
  grace: { email: 'grace@acme.example', email_verified: true },
  root: { email: 'root@ops.example', email_verified: true },
  mallory: { email: 'grace@acme.example', email_verified: false },
};
let server, browser;

before(async () => {
  const provider = new Provider(OIDC_ISSUER, {
    clients: [
      {
        client_id: OIDC_CLIENT_ID,
        client_secret: OIDC_CLIENT_SECRET,
        redirect_uris: [new URL('/sign-in/callback', issuer).href],
        response_types: ['code'],
        grant_types: ['authorization_code'],
      },
    ],
    pkce: { required: () => true },
    claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name'] },
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, ...people[id] }) }),
    features: { devInteractions: { enabled: true } },
    cookies: { keys: ['interop'] },
  });
  server = http.createServer(provider.callback());
  await new Promise((ready) => server.listen(Number(new URL(OIDC_ISSUER).port), '127.0.0.1', ready));
  browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync'],
  });
});

after(async () => {
  await browser?.close();
  server?.closeAllConnections();
  server?.close();
});

/** Goes from our sign-in page through the provider's log-in and consent, back to us. */
async function signIn(page, person) {
  await page.goto(new URL('/sign-in', issuer).href);
  await page.getByRole('link', { name: /^Sign in with/ }).click();
  await page.locator('input[name=login]').fill(person);
  await page.locator('input[name=password]').fill('any');
  await page.locator('button[type=submit]').click();
  await page.locator('button[type=submit]').click();
  await page.waitForURL((url) => url.origin === issuer.origin);
}

async function shot(page, name) {
  if (SCREENSHOTS) await page.screenshot({ path: `${SCREENSHOTS}/${name}.png` });
}

async function inABrowser(work) {
  const context = await browser.newContext();
  const page = await context.newPage();
  const wrong = [];
  page.on('console', (message) => {
    const ours = message.location().url.startsWith(issuer.origin);
    if (ours && message.type() === 'error') wrong.push(message.text());
  });
  try {
    await work(page, context);
  } finally {
    await context.close();
  }
  assert.deepEqual(wrong.filter((each) => !/status of (401|403|404)/.test(each)), [], 'the pages keep their own policy');
}

test('a member signs in, looks around and signs out', () =>
  inABrowser(async (page, context) => {
    const answer = await fetch(new URL('/api/v1/members', issuer), {
      method: 'POST',
      headers: { authorization: `Bearer ${await bearer()}`, 'content-type': 'application/json' },
      body: JSON.stringify({ value: 'grace@acme.example', scopes: ['pools:read', 'usage:read'] }),
    });
    assert.equal(answer.status, 201, await answer.text());
    await page.goto(new URL('/me', issuer).href);
    await shot(page, 'nobody');
    await signIn(page, 'grace');
    assert.equal(new URL(page.url()).pathname, '/me');
    await shot(page, 'me');
    await page.getByText('grace@acme.example').waitFor();
    const cookies = (await context.cookies(issuer.href)).filter((each) => each.name.includes('llm-proxy'));
    assert.deepEqual(cookies.map((each) => each.name), ['llm-proxy-session'], 'the attempt has ended');
    assert.equal(cookies[0].httpOnly, true);
    assert.equal(cookies[0].sameSite, 'Lax');
    assert.equal(await page.evaluate('document.cookie'), '');
    await page.getByRole('button', { name: 'Sign out', exact: true }).click();
    await page.waitForURL('**/signed-out');
    await shot(page, 'signed-out');
    await page.goto(new URL('/me', issuer).href);
    await page.getByText('You are not signed in').waitFor();
  }));

test('an operator signs in', () =>
  inABrowser(async (page) => {
    await signIn(page, 'root');
    await page.getByText('platform', { exact: true }).waitFor();
  }));

test('an unverified address signs nobody in', () =>
  inABrowser(async (page) => {
    await signIn(page, 'mallory');
    await page.getByText('You are not a member').waitFor();
    await shot(page, 'stranger');
    await page.goto(new URL('/me', issuer).href);
    await page.getByText('You are not signed in').waitFor();
  }));

test('another site can neither frame the pages nor send their forms', () =>
  inABrowser(async (page) => {
    await signIn(page, 'root');
    const evil = http.createServer((_, answer) => {
      answer.setHeader('content-type', 'text/html');
      answer.end(`<form id=f method=post action="${new URL('/sign-out', issuer).href}"></form><script>f.submit()</script>`);
    });
    await new Promise((ready) => evil.listen(0, '127.0.0.1', ready));
    await page.goto(`http://localhost:${evil.address().port}/`);
    await page.getByText('This form came from another site').waitFor();
    await page.goto(new URL('/me', issuer).href);
    await page.getByText('root@ops.example').waitFor();
    evil.closeAllConnections();
    evil.close();
  }));
