-- wrk's script for benchmarks/serving.py: each request is a POST of the next line of a file, from a given line on.
--
--     wrk -t 1 -c 8 -d 20s -s serving.lua http://127.0.0.1:8000/answer -- BODIES FIRST
--
-- The last line of the output is a JSON object; durations are in seconds.

local posts, place = {}, 0

function init(arguments)
  local headers = {["Content-Type"] = "application/json", ["Host"] = wrk.headers["Host"]}
  for body in io.lines(arguments[1]) do
    posts[#posts + 1] = wrk.format("POST", wrk.path, headers, body)
  end
  place = tonumber(arguments[2])
end

function request()
  place = place % #posts + 1
  return posts[place]
end

function done(summary, latency)
  local errors = summary.errors
  local connection = errors.connect + errors.read + errors.write
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "p50": %.6f, "p99": %.6f, "failed": %d, "broken": %d, "timeouts": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
    errors.status, connection, errors.timeout
  ))
end
