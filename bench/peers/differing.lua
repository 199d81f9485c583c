-- For wrk: no two requests are the same bytes.
local number = 0
local head

function init()
  head = wrk.format():sub(1, -3) .. "X-Request: "
end

function request()
  number = number + 1
  return head .. number .. "\r\n\r\n"
end
