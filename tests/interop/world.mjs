// What the tests share: the running gateway (by environment), clients registered through its management API.
import assert from 'node:assert/strict';

const { ISSUER, CLIENT_ID, CLIENT_SECRET, CERTIFICATE, CERTIFICATE_S256 } = process.env;
export const issuer = new URL(ISSUER);
export const main = { id: CLIENT_ID, secret: CLIENT_SECRET };
export const TOKEN_EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
export const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token';

let token;
/** A token of the tenant's own client. */
export async function bearer() {
  if (token === undefined) {
    const answer = await fetch(`${ISSUER}/oauth2/token`, {
      method: 'POST',
      headers: { authorization: `Basic ${btoa(`${CLIENT_ID}:${CLIENT_SECRET}`)}` },
      body: new URLSearchParams({ grant_type: 'client_credentials' }),
    });
    token = (await answer.json()).access_token;
  }
  return token;
}

/** Registers a client of the tenant and returns its id and secret (null for methods without one). */
export async function register(auth_method, metadata = {}, scopes = ['inference', 'clients:read', 'tokens:issue']) {
  const answer = await fetch(`${ISSUER}/api/v1/clients`, {
    method: 'POST',
    headers: { authorization: `Bearer ${await bearer()}`, 'content-type': 'application/json' },
    body: JSON.stringify({ name: `interop ${auth_method}`, scopes, auth_method, metadata }),
  });
  const made = await answer.json();
  assert.equal(answer.status, 201, JSON.stringify(made));
  return { id: made.client_id, secret: made.client_secret };
}

/** A key pair and the JWK Set of its public half. */
export async function keyPair(alg) {
  const kinds = {
    ES256: { name: 'ECDSA', namedCurve: 'P-256' },
    RS256: { name: 'RSASSA-PKCS1-v1_5', hash: 'SHA-256', modulusLength: 2048, publicExponent: new Uint8Array([1, 0, 1]) },
    PS256: { name: 'RSA-PSS', hash: 'SHA-256', modulusLength: 2048, publicExponent: new Uint8Array([1, 0, 1]) },
    Ed25519: { name: 'Ed25519' },
  };
  const pair = await crypto.subtle.generateKey(kinds[alg], true, ['sign', 'verify']);
  const { kty, crv, x, y, n, e } = await crypto.subtle.exportKey('jwk', pair.publicKey);
  return { pair, jwks: { keys: [{ kty, crv, x, y, n, e, kid: 'k1', alg }] } };
}

/** fetch as a TLS-terminating proxy makes it: with the caller's certificate in the header of RFC 9440. */
export function throughProxy(url, options) {
  const headers = new Headers(options.headers);
  headers.set('client-cert', `:${CERTIFICATE}:`);
  return fetch(url, { ...options, headers });
}

export const certificateMetadata = {
  tls_client_certificates_s256: [CERTIFICATE_S256],
  tls_client_certificate_bound_access_tokens: true,
};
export const certificateThumbprint = CERTIFICATE_S256;
