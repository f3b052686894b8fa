// Microsoft's @azure/msal-node, unmodified: On-Behalf-Of, refresh and client credentials at the emulator of Entra ID.
import assert from "node:assert/strict";
import { createHash, X509Certificate } from "node:crypto";
import { ConfidentialClientApplication } from "@azure/msal-node";
import { EnvHttpProxyAgent, setGlobalDispatcher } from "undici";

// The client uses Node's own fetch, and Node 20's looks at HTTPS_PROXY only when it is told to.
setGlobalDispatcher(new EnvHttpProxyAgent());

const graph = "https://graph.microsoft.com";
const { TENANT, CLIENT_ID, CLIENT_SECRET, CERTIFICATE, PRIVATE_KEY, ASSERTION } = process.env;
const application = (credential) =>
  new ConfidentialClientApplication({
    auth: { clientId: CLIENT_ID, authority: `https://login.microsoftonline.com/${TENANT}`, ...credential },
  });
const granted = (what, result) => {
  assert.ok(result?.accessToken, what);
  assert.equal(result.fromCache, false, what);
  console.log(what, "granted");
};

const thumbprintSha256 = createHash("sha256").update(new X509Certificate(CERTIFICATE).raw).digest("hex");
for (const [name, credential] of Object.entries({
  secret: { clientSecret: CLIENT_SECRET },
  certificate: { clientCertificate: { thumbprintSha256, privateKey: PRIVATE_KEY } },
})) {
  const app = application(credential);
  granted(
    `${name}: on behalf of`,
    await app.acquireTokenOnBehalfOf({ oboAssertion: ASSERTION, scopes: [`${graph}/User.Read`] }),
  );
  // This client keeps refresh tokens to itself and uses none that it got on behalf of a user, so it is given one.
  granted(
    `${name}: refresh`,
    await app.acquireTokenByRefreshToken({ refreshToken: process.env.REFRESH_TOKEN, scopes: [`${graph}/Mail.Read`] }),
  );
  granted(
    `${name}: client credentials`,
    await app.acquireTokenByClientCredential({ scopes: ["https://vault.azure.net/.default"] }),
  );
}

await assert.rejects(
  application({ clientSecret: "wrong" }).acquireTokenByClientCredential({ scopes: ["https://vault.azure.net/.default"] }),
  (error) => error.errorCode === "invalid_client" && /AADSTS7000215/.test(error.errorMessage),
);
