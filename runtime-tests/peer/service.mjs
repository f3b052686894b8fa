// The service that people write today in Node for what behalf's `POST /v1/me/access-token` does, to be compared with it
// by `scripts/bench`. README.md beside it says what it does, what it leaves out, and why the comparison is fair.
//
// Settings are environment variables: CLIENT_ID, CLIENT_SECRET, TENANTS (a comma between them), KEY_VAULT_URL,
// KEY_VAULT_TENANT, REDIS_URL; PORT (0: any that is free) and WORKERS (processes, 1) may be left out. It prints where it
// serves, and ends with its standard input or by SIGTERM.
import cluster from "node:cluster";
import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";
import { ClientSecretCredential } from "@azure/identity";
import { SecretClient } from "@azure/keyvault-secrets";
import { ConfidentialClientApplication, InteractionRequiredAuthError } from "@azure/msal-node";
import Fastify from "fastify";
import { createRemoteJWKSet, errors, jwtVerify } from "jose";
import { LRUCache } from "lru-cache";
import { createClient, RESP_TYPES } from "redis";
import { EnvHttpProxyAgent, setGlobalDispatcher } from "undici";

const { CLIENT_ID, CLIENT_SECRET, KEY_VAULT_URL, KEY_VAULT_TENANT, REDIS_URL } = process.env;
const TENANTS = process.env.TENANTS.split(",");
const PORT = Number(process.env.PORT ?? 0);
const WORKERS = Number(process.env.WORKERS ?? 1);
const LOGIN = "https://login.microsoftonline.com";
const SCOPES = ["https://graph.microsoft.com/.default"];
const MINUTE = 60_000;

// Node 20's fetch, which msal-node and jose use, looks at HTTPS_PROXY only when it is told to. Connections are kept.
setGlobalDispatcher(new EnvHttpProxyAgent());

/** Starts the workers, and says where they serve when all of them do. One that is lost ends the service. */
function distribute() {
  let listening = 0;
  cluster.on("listening", (_, { address, port }) => {
    if (++listening === WORKERS) console.log(`Serving http://${address}:${port}`);
  });
  cluster.on("exit", () => process.exit(1));
  for (let started = 0; started < WORKERS; started++) cluster.fork();
  // Workers go when the channel to their primary is closed.
  endWith(() => process.exit(0));
}

async function serve() {
  await redis.connect();
  // Requests are not logged: what a request costs is what is compared.
  const service = Fastify({ logger: false, bodyLimit: 64 * 1024 });
  service.setErrorHandler((error, _, reply) => {
    const { status, code } = refusal(error);
    if (status === 401) reply.header("www-authenticate", 'Bearer error="invalid_token"');
    reply.code(status).send({ error: code });
  });
  service.get("/healthz", async () => ({ status: "ok" }));
  service.put("/v1/me", async (request, reply) => {
    const caller = await verified(request);
    const { scopes } = await exchanged(caller, { skipCache: true });
    reply.code(201);
    return { scope: scopes.join(" ") };
  });
  service.post("/v1/me/access-token", { schema: { response: { 200: TOKEN } } }, async (request, reply) => {
    const { accessToken, expiresOn, scopes } = await exchanged(await verified(request));
    reply.header("cache-control", "no-store");
    return {
      access_token: accessToken,
      token_type: "Bearer",
      expires_in: Math.floor((expiresOn.getTime() - Date.now()) / 1000),
      scope: scopes.join(" "),
    };
  });
  const address = await service.listen({ host: "127.0.0.1", port: PORT });
  // A worker's primary says so, and takes it along.
  if (cluster.isWorker) return process.on("SIGTERM", () => {});
  console.log(`Serving ${address}`);
  endWith(() => {
    // A connection that never had a request is not idle to Node, and would be waited for as long as it likes.
    setTimeout(() => service.server.closeAllConnections(), 1000);
    service.close().then(() => process.exit(0));
  });
}

function endWith(end) {
  process.once("SIGTERM", end);
  process.stdin.resume().once("end", end);
}

/** With a schema Fastify compiles a serializer for this answer alone, which is faster than JSON.stringify. */
const TOKEN = {
  type: "object",
  properties: {
    access_token: { type: "string" },
    token_type: { type: "string" },
    expires_in: { type: "integer" },
    scope: { type: "string" },
  },
};

/** What a caller is told, without a text of others that could hold a token. */
function refusal(error) {
  // That the signing keys cannot be had is not the caller's fault.
  const isTheTokens = error instanceof errors.JOSEError && !/^ERR_(JWKS_(TIMEOUT|INVALID)|JOSE_GENERIC)$/.test(error.code);
  if (error instanceof Unauthorized || isTheTokens) return { status: 401, code: "invalid_token" };
  if (error instanceof InteractionRequiredAuthError) return { status: 403, code: "interaction_required" };
  if (error.statusCode >= 400 && error.statusCode < 500) return { status: error.statusCode, code: "invalid_request" };
  return { status: 503, code: "temporarily_unavailable" };
}

// --- Who calls ---

class Unauthorized extends Error {}

// One set for all tenants. It is fetched once, and again for a key that is not in it, at most every 30 seconds.
const signingKeys = createRemoteJWKSet(new URL(`${LOGIN}/common/discovery/v2.0/keys`), { cacheMaxAge: 60 * MINUTE });
const expected = {
  algorithms: ["RS256"],
  audience: [CLIENT_ID, `api://${CLIENT_ID}`],
  issuer: TENANTS.map((tenant) => `${LOGIN}/${tenant}/v2.0`),
  requiredClaims: ["exp", "oid", "tid"],
};

// Callers come back with the same token for an hour. behalf remembers whom it has verified, and so does this.
const callers = new LRUCache({ max: 10_000 });

/** Whose token a request has: signature, issuer, audience, times and scope are as they should be. */
async function verified(request) {
  const token = /^Bearer ([\w.~+/-]+=*)$/i.exec(request.headers.authorization ?? "")?.[1];
  if (!token) throw new Unauthorized();
  const known = callers.get(token);
  if (known) return known;
  const { payload } = await jwtVerify(token, signingKeys, expected);
  const { oid, tid, exp, iss, scp } = payload;
  if (iss !== `${LOGIN}/${tid}/v2.0` || !`${scp}`.split(" ").includes("access_as_user")) throw new Unauthorized();
  const caller = { token, tenant: tid, partition: `${oid}.${tid}` };
  const ttl = Math.min(exp * 1000 - Date.now(), 60 * MINUTE);
  if (ttl > 0) callers.set(token, caller, { ttl });
  return caller;
}

// --- msal-node, with a cache a user ---

/** The access token that msal-node has for this caller in Redis, or one that it is given for the caller's token now. */
async function exchanged({ token, tenant, partition }, options) {
  // An application of one request, as Microsoft's samples have it: its cache in memory is of one user, and requests of
  // two users at once cannot see each other's. It asks nobody about login.microsoftonline.com, which msal-node knows.
  const cachePlugin = new Partition(tenant, partition);
  const application = new ConfidentialClientApplication({
    auth: { clientId: CLIENT_ID, clientSecret: CLIENT_SECRET, authority: `${LOGIN}/${tenant}` },
    cache: { cachePlugin },
  });
  // On-Behalf-Of looks into that memory alone, so it is filled first. The samples do that with getAllAccounts(), which makes
  // a list that nobody reads.
  if (!options?.skipCache) await cachePlugin.beforeCacheAccess({ tokenCache: application.getTokenCache() });
  return application.acquireTokenOnBehalfOf({ oboAssertion: token, scopes: SCOPES, ...options });
}

/** One user's cache in Redis: AES-256-GCM under the tenant's key, bound to the user. */
class Partition {
  constructor(tenant, name) {
    this.tenant = tenant;
    this.name = name;
  }

  async beforeCacheAccess({ tokenCache }) {
    const [key, sealed] = await Promise.all([tenantKey(this.tenant), redis.get(this.name)]);
    const opened = sealed && open(key, this.name, sealed);
    if (opened) tokenCache.deserialize(opened);
  }

  async afterCacheAccess({ cacheHasChanged, tokenCache }) {
    if (!cacheHasChanged) return;
    const sealed = seal(await tenantKey(this.tenant), this.name, tokenCache.serialize());
    // No access token is good for longer than about a day.
    await redis.set(this.name, sealed, { expiration: { type: "EX", value: 24 * 60 * 60 } });
  }
}

// One connection, kept, on which commands are pipelined. That a server hangs is noticed by the connection, which is asked
// every other second: a timer a command, the default, costs a fifth of a draw. Values are bytes: nothing is encoded.
const redis = createClient({
  url: REDIS_URL,
  disableOfflineQueue: true,
  commandOptions: { timeout: 0 },
  pingInterval: 2_000,
  socket: { socketTimeout: 5_000, reconnectStrategy: (retries) => Math.min(50 * 2 ** retries, 1_000) },
})
  .withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer })
  // It connects again by itself, and commands fail meanwhile.
  .on("error", (error) => console.error(`Redis: ${error.code ?? error.name}`));

const [IV, TAG] = [12, 16];

function seal(key, name, text) {
  const iv = randomBytes(IV);
  const cipher = createCipheriv("aes-256-gcm", key, iv).setAAD(Buffer.from(name));
  const sealed = [cipher.update(text, "utf8"), cipher.final()];
  return Buffer.concat([iv, cipher.getAuthTag(), ...sealed]);
}

/** None if it was not sealed with this key for this name: the key has another version now, and the token is drawn anew. */
function open(key, name, sealed) {
  try {
    const decipher = createDecipheriv("aes-256-gcm", key, sealed.subarray(0, IV), { authTagLength: TAG })
      .setAAD(Buffer.from(name))
      .setAuthTag(sealed.subarray(IV, IV + TAG));
    return decipher.update(sealed.subarray(IV + TAG), undefined, "utf8") + decipher.final("utf8");
  } catch {
    return undefined;
  }
}

// --- Tenants' keys, in Key Vault ---

const keyVault = new SecretClient(KEY_VAULT_URL, new ClientSecretCredential(KEY_VAULT_TENANT, CLIENT_ID, CLIENT_SECRET));
// Kept for an hour; requests at once share one question, and one that failed is asked again.
const keys = new LRUCache({
  max: 1000,
  ttl: 60 * MINUTE,
  fetchMethod: async (tenant) => Buffer.from((await keyVault.getSecret(`obo-${tenant}`)).value, "base64"),
});

function tenantKey(tenant) {
  return keys.get(tenant) ?? keys.fetch(tenant);
}

// Last, when all of the above is there. A primary without work of its own is only there when there is something to distribute.
if (WORKERS > 1 && cluster.isPrimary) distribute();
else await serve();
