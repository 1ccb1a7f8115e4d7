import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as oidc from 'openid-client';
import * as world from './world.mjs';

const options = { algorithm: 'oauth2', execute: [oidc.allowInsecureRequests] };
const configured = (id, auth) => oidc.discovery(world.issuer, id, undefined, auth, options);
const mine = () => configured(world.main.id, oidc.ClientSecretBasic(world.main.secret));

test('client_secret_basic', async () => {
  const got = await oidc.clientCredentialsGrant(await mine(), { scope: 'inference usage:read' });
  assert.deepEqual(got.scope.split(' ').sort(), ['inference', 'usage:read']);
});

test('client_secret_post', async () => {
  const { id, secret } = await world.register('client_secret_post');
  assert.ok((await oidc.clientCredentialsGrant(await configured(id, oidc.ClientSecretPost(secret)))).access_token);
});

test('private_key_jwt', async () => {
  const { pair, jwks } = await world.keyPair('ES256');
  const { id } = await world.register('private_key_jwt', { jwks });
  const auth = oidc.PrivateKeyJwt({ key: pair.privateKey, kid: 'k1' });
  assert.ok((await oidc.clientCredentialsGrant(await configured(id, auth))).access_token);
});

test('self_signed_tls_client_auth', async () => {
  const { id } = await world.register('self_signed_tls_client_auth', world.certificateMetadata);
  const config = await configured(id, oidc.TlsClientAuth());
  config[oidc.customFetch] = world.throughProxy;
  assert.ok((await oidc.clientCredentialsGrant(config)).access_token);
});

test('introspection and revocation', async () => {
  const config = await mine();
  const { access_token } = await oidc.clientCredentialsGrant(config);
  assert.equal((await oidc.tokenIntrospection(config, access_token)).active, true);
  await oidc.tokenRevocation(config, access_token);
  for (let left = 50; (await oidc.tokenIntrospection(config, access_token)).active; left--) {
    assert.ok(left > 0, 'the revocation did not arrive');
  }
});

test('token exchange with authorization_details', async () => {
  const config = await mine();
  const { access_token } = await oidc.clientCredentialsGrant(config);
  const narrowed = await oidc.genericGrantRequest(config, world.TOKEN_EXCHANGE, {
    subject_token: access_token,
    subject_token_type: world.ACCESS_TOKEN,
    scope: 'inference',
    authorization_details: JSON.stringify([{ type: 'llm_proxy', models: ['gpt-4o-mini'], rpm: 10 }]),
  });
  assert.deepEqual(narrowed.authorization_details[0].models, ['gpt-4o-mini']);
});

test('DPoP, its nonce learned on the way', async () => {
  const config = await mine();
  const { pair } = await world.keyPair('ES256');
  const DPoP = oidc.getDPoPHandle(config, pair);
  const got = await oidc.clientCredentialsGrant(config, {}, { DPoP });
  assert.equal(got.token_type, 'dpop');
  const url = new URL('/api/v1/clients', world.issuer);
  assert.equal((await oidc.fetchProtectedResource(config, got.access_token, url, 'GET', null, null, { DPoP })).status, 200);
});
