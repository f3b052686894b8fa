// An MCP server whose tool reads a user's calendar through behalf, so that an agent can.
//
// Neither the agent nor this program ever has a token of the calendar's API: no refresh token, no access token, and no secret
// of an app. What comes with each request is the user's token for this app, the one that behalf takes. It goes on to behalf, is
// kept nowhere, and is good for what the setting `apis` lets be called, and for nothing else of the user's.
//
// BEHALF_URL is where behalf is; PORT where this listens on 127.0.0.1, at /mcp (0: any port, which it prints).

import { createServer } from "node:http";

import {
  NodeStreamableHTTPServerTransport, localhostHostValidation, localhostOriginValidation,
} from "@modelcontextprotocol/node";
import { McpServer } from "@modelcontextprotocol/server";
import { z } from "zod";

const EVENTS = "/v1/me/call/graph/v1.0/me/calendar/events";
// Longer than behalf waits for the API.
const PATIENCE = 30_000;

const behalf = new URL(process.env.BEHALF_URL ?? "http://127.0.0.1:3000");

const event = z.object({ subject: z.string(), start: z.string(), end: z.string() });

// A server for one request, with that request's token.
function serverOf(authorization) {
  const server = new McpServer({ name: "calendar", version: "0.2.0" });
  server.registerTool(
    "list_events",
    {
      title: "Events of the calendar",
      description: "The first events of the user's calendar, with their times in UTC.",
      inputSchema: z.object({ most: z.number().int().min(1).max(50).default(10) }),
      outputSchema: z.object({ events: z.array(event) }),
      annotations: { readOnlyHint: true },
    },
    async ({ most }) => {
      const query = new URLSearchParams({ $top: most, $select: "subject,start,end" });
      const answer = await fetch(new URL(`${EVENTS}?${query}`, behalf), {
        headers: { authorization, accept: "application/json", prefer: 'outlook.timezone="UTC"' },
        redirect: "error",
        signal: AbortSignal.timeout(PATIENCE),
      });
      if (!answer.ok) {
        return failed(answer);
      }
      const { value } = await answer.json();
      const events = value.map(({ subject, start, end }) => ({ subject, start: start.dateTime, end: end.dateTime }));
      return { content: [{ type: "text", text: JSON.stringify(events) }], structuredContent: { events } };
    },
  );
  return server;
}

// What the agent is told: behalf's own words, or that it was the API.
async function failed(answer) {
  const api = answer.headers.get("behalf-upstream");
  const problem = api === null ? await answer.json() : {};
  const text = problem.detail ?? `the calendar answers ${answer.status}`;
  return { content: [{ type: "text", text }], isError: true };
}

const isOurHost = localhostHostValidation();
const isOurOrigin = localhostOriginValidation();

async function handle(request, response) {
  if (!isOurHost(request, response) || !isOurOrigin(request, response)) {
    return;
  }
  const { authorization } = request.headers;
  if (request.url !== "/mcp") {
    response.writeHead(404).end();
  } else if (!authorization?.startsWith("Bearer ")) {
    // Whether the token is good is for behalf to say.
    response.writeHead(401, { "www-authenticate": "Bearer" }).end();
  } else {
    const server = serverOf(authorization);
    response.on("close", () => server.close());
    const transport = new NodeStreamableHTTPServerTransport({ sessionIdGenerator: undefined });
    await server.connect(transport);
    await transport.handleRequest(request, response);
  }
}

const listener = createServer((request, response) => {
  handle(request, response).catch((error) => {
    console.error(error.message);
    response.destroy();
  });
});
listener.listen(Number(process.env.PORT ?? 3100), "127.0.0.1", () => {
  console.log(`Serving http://127.0.0.1:${listener.address().port}`);
});
for (const signal of ["SIGINT", "SIGTERM"]) {
  process.once(signal, () => listener.close());
}
