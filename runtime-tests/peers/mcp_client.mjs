// An agent, as far as it uses a tool: the client of the MCP SDK, on an MCP server.
//
// Input: {"url", "token" (none: it sends none), "calls": [{"name", "arguments"}]}. Output: {"tools": [{"name", "readOnly"}],
// "results": [{"isError", "text", "structured"}]}, or {"error"} if it cannot connect.

import { readFileSync } from "node:fs";

import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";

const { url, token, calls } = JSON.parse(readFileSync(0, "utf8"));
const headers = token ? { authorization: `Bearer ${token}` } : {};
const client = new Client({ name: "agent", version: "1.0.0" });
try {
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }));
  const { tools } = await client.listTools();
  const results = [];
  for (const call of calls) {
    const { isError = false, content, structuredContent } = await client.callTool(call);
    results.push({ isError, text: content.map(({ text }) => text).join(""), structured: structuredContent });
  }
  const described = tools.map(({ name, annotations }) => ({ name, readOnly: annotations?.readOnlyHint ?? false }));
  console.log(JSON.stringify({ tools: described, results }));
} catch (error) {
  console.log(JSON.stringify({ error: `${error.name}: ${error.message}` }));
} finally {
  await client.close();
}
