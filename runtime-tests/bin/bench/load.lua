-- For wrk: wrk -s load.lua URL -- METHOD [FILE] sends requests with this method, with the bearer tokens of the file in
-- turn, one a line. Prints a line of JSON at the end; times are in microseconds.
local requests = {}
local last = 0

function init(arguments)
  local method, file = arguments[1], arguments[2]
  if file then
    for token in io.lines(file) do
      table.insert(requests, wrk.format(method, nil, { Authorization = "Bearer " .. token }))
    end
  else
    table.insert(requests, wrk.format(method))
  end
end

function request()
  last = last % #requests + 1
  return requests[last]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"duration":%d,"refused":%d,"broken":%d,"p50":%d,"p99":%d}\n',
    summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
