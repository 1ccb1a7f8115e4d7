import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as oauth from 'oauth4webapi';
import * as world from './world.mjs';

const plain = { [oauth.allowInsecureRequests]: true };
const as = await oauth.processDiscoveryResponse(
  world.issuer,
  await oauth.discoveryRequest(world.issuer, { algorithm: 'oauth2', ...plain }),
);

async function getToken(id, auth, parameters = {}, options = {}) {
  const client = { client_id: id };
  const answer = await oauth.clientCredentialsGrantRequest(as, client, auth, parameters, { ...plain, ...options });
  return oauth.processClientCredentialsResponse(as, client, answer);
}

test('discovery', () => {
  assert.equal(new URL(as.issuer).href, world.issuer.href);
  for (const name of ['token_endpoint', 'introspection_endpoint', 'revocation_endpoint', 'jwks_uri']) assert.ok(as[name]);
  assert.ok(as.token_endpoint_auth_methods_supported.includes('self_signed_tls_client_auth'));
});

test('client_secret_basic', async () => {
  const got = await getToken(world.main.id, oauth.ClientSecretBasic(world.main.secret), { scope: 'inference' });
  assert.equal(got.scope, 'inference');
});

test('client_secret_post', async () => {
  const { id, secret } = await world.register('client_secret_post');
  assert.equal((await getToken(id, oauth.ClientSecretPost(secret))).token_type, 'bearer');
});

for (const alg of ['ES256', 'RS256', 'PS256', 'Ed25519']) {
  test(`private_key_jwt with ${alg}`, async () => {
    const { pair, jwks } = await world.keyPair(alg);
    const { id } = await world.register('private_key_jwt', { jwks });
    const auth = oauth.PrivateKeyJwt({ key: pair.privateKey, kid: 'k1' });
    assert.ok((await getToken(id, auth)).access_token);
    const stranger = await world.keyPair(alg);
    await assert.rejects(getToken(id, oauth.PrivateKeyJwt({ key: stranger.pair.privateKey, kid: 'k1' })), { status: 401 });
  });
}

test('self_signed_tls_client_auth', async () => {
  const { id } = await world.register('self_signed_tls_client_auth', world.certificateMetadata);
  const got = await getToken(id, oauth.TlsClientAuth(), {}, { [oauth.customFetch]: world.throughProxy });
  const claims = JSON.parse(Buffer.from(got.access_token.split('.')[1], 'base64url').toString());
  assert.equal(claims.cnf['x5t#S256'], world.certificateThumbprint);
  const url = new URL('/api/v1/clients', world.issuer);
  const withIt = await oauth.protectedResourceRequest(got.access_token, 'GET', url, undefined, undefined, {
    ...plain,
    [oauth.customFetch]: world.throughProxy,
  });
  assert.equal(withIt.status, 200);
  await assert.rejects(oauth.protectedResourceRequest(got.access_token, 'GET', url, undefined, undefined, plain), {
    status: 401,
  });
  await assert.rejects(getToken(id, oauth.TlsClientAuth()), { status: 401 });
});

test('introspection as JSON and as signed JWT, then revocation', async () => {
  const auth = oauth.ClientSecretBasic(world.main.secret);
  const client = { client_id: world.main.id };
  const { access_token } = await getToken(world.main.id, auth);
  const introspect = async (options = {}) =>
    oauth.introspectionRequest(as, client, auth, access_token, { ...plain, ...options });
  assert.equal((await oauth.processIntrospectionResponse(as, client, await introspect())).active, true);
  const signed = await introspect({ requestJwtResponse: true });
  assert.match(signed.headers.get('content-type'), /application\/token-introspection\+jwt/);
  assert.equal((await oauth.processIntrospectionResponse(as, client, signed)).active, true);
  await oauth.validateApplicationLevelSignature(as, signed, plain);
  await oauth.processRevocationResponse(await oauth.revocationRequest(as, client, auth, access_token, plain));
  for (let left = 50; (await oauth.processIntrospectionResponse(as, client, await introspect())).active; left--) {
    assert.ok(left > 0, 'the revocation did not arrive');
  }
});

test('token exchange narrows and never widens', async () => {
  const auth = oauth.ClientSecretBasic(world.main.secret);
  const client = { client_id: world.main.id };
  const { access_token } = await getToken(world.main.id, auth, { scope: 'inference tokens:issue' });
  const exchange = async (scope) => {
    const parameters = { subject_token: access_token, subject_token_type: world.ACCESS_TOKEN, scope };
    const answer = await oauth.genericTokenEndpointRequest(as, client, auth, world.TOKEN_EXCHANGE, parameters, plain);
    return oauth.processGenericTokenEndpointResponse(as, client, answer);
  };
  const narrowed = await exchange('inference');
  assert.equal(narrowed.scope, 'inference');
  assert.equal(narrowed.issued_token_type, world.ACCESS_TOKEN);
  await assert.rejects(exchange('inference usage:read'), { error: 'invalid_scope' });
});

for (const alg of ['ES256', 'Ed25519']) {
  test(`DPoP with ${alg}`, async () => {
    const { pair } = await world.keyPair(alg);
    const client = { client_id: world.main.id };
    const DPoP = oauth.DPoP(client, pair);
    const auth = oauth.ClientSecretBasic(world.main.secret);
    const ask = () => getToken(world.main.id, auth, {}, { DPoP });
    await assert.rejects(ask(), (error) => oauth.isDPoPNonceError(error));
    const got = await ask();
    assert.equal(got.token_type, 'dpop');
    const url = new URL('/api/v1/clients', world.issuer);
    const resource = (options) =>
      oauth.protectedResourceRequest(got.access_token, 'GET', url, undefined, undefined, { ...plain, ...options });
    assert.equal((await resource({ DPoP })).status, 200);
    await assert.rejects(resource({}), { status: 401 });
    const models = new URL('/v1/models', world.issuer);
    const listed = await oauth.protectedResourceRequest(got.access_token, 'GET', models, undefined, undefined, { ...plain, DPoP });
    assert.equal(listed.status, 200);
  });
}

test('a tenant has an issuer of its own', async () => {
  const claims = JSON.parse(
    Buffer.from((await getToken(world.main.id, oauth.ClientSecretBasic(world.main.secret))).access_token.split('.')[1], 'base64url'),
  );
  assert.equal(claims.iss, as.issuer);
  const own = new URL('/t/acme', world.issuer);
  const metadata = await oauth.processDiscoveryResponse(
    own,
    await oauth.discoveryRequest(own, { algorithm: 'oauth2', ...plain }),
  );
  const client = { client_id: world.main.id };
  const auth = oauth.ClientSecretBasic(world.main.secret);
  const answer = await oauth.clientCredentialsGrantRequest(metadata, client, auth, {}, plain);
  assert.ok((await oauth.processClientCredentialsResponse(metadata, client, answer)).access_token);
});
