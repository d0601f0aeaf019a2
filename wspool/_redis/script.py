"""What happens in Redis: one step of one process, which is atomic. It knows no pool."""

from __future__ import annotations

from typing import Final

SCRIPT: Final = """
local leases, queue, heard, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local worker, limit, lease = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local interval, ahead, patience = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local poll, known = tonumber(ARGV[7]), ARGV[8]
local wanted, released = tonumber(ARGV[9]), tonumber(ARGV[10])
local time = redis.call('TIME')
local clock = time[1] * 1000000 + time[2]  -- all times are in microseconds
local grace = math.floor(lease / 3)

local function size(key) return redis.call('ZCARD', key) end
local function leave(who)
  redis.call('ZREM', queue, who)
  redis.call('ZREM', heard, who)
end

-- Where some of the data is gone, all of it is: it begins again, as another epoch. Those who had
-- leases may enter them before anybody gets another, once an epoch.
local epoch, had = redis.call('HGET', state, 'epoch'), {}
for _, name in ipairs({'leases', 'queue', 'clock', 'now', 'due', 'kept', 'shut'}) do
  had[name] = tonumber(redis.call('HGET', state, name) or 0)
end
local is_torn = had.leases ~= size(leases) or had.queue ~= size(queue) or had.queue ~= size(heard)
if is_torn or not epoch then
  redis.call('DEL', leases, queue, heard, state)
  epoch = worker .. '.' .. string.format('%.0f', clock)
  had = {clock = clock, now = clock, due = 0, kept = 0, shut = 0}
end
-- The fleet's time stands still when the server's clock goes back.
local passed = math.max(1, clock - had.clock)
local now = had.now + passed
-- Nobody was heard of, or the clock went forward: let those who are alive renew theirs first.
local kept = passed > 0.4 * lease and now + grace or had.kept
local shut = had.shut
if shut == 0 and (is_torn or known ~= '' and known ~= epoch) then shut = now + grace end

-- When the next dial may begin; how many may within `ahead`.
local due = math.max(now, math.min(had.due, now + ahead + interval))
local function room()
  local free = now < shut and 0 or limit - size(leases)
  if interval == 0 then return free end
  return math.min(free, math.floor((now + ahead - due) / interval) + 1)
end
-- Who may come and ask for that: the first in line.
local function welcome()
  local places = room()
  return places > 0 and redis.call('ZRANGE', queue, 0, places - 1) or {}
end
local told = {}
for _, who in ipairs(welcome()) do told[who] = true end

for i = 11 + wanted, 10 + wanted + released do
  redis.call('ZREM', leases, ARGV[i])
end
local lost, gone = {}, 0
for i = 11 + wanted + released, #ARGV do
  local is_there = redis.call('ZSCORE', leases, ARGV[i])
  if not is_there then gone = gone + 1 end
  if is_there or size(leases) < limit then
    redis.call('ZADD', leases, now + lease, ARGV[i])
  else
    lost[#lost + 1] = i - 11 - wanted - released
  end
end
if now >= kept then
  redis.call('ZREMRANGEBYSCORE', leases, '-inf', now)
end
for _, who in ipairs(redis.call('ZRANGEBYSCORE', heard, '-inf', now)) do leave(who) end

local delays, pause, waits, served = {}, 0, false, false
if wanted > 0 then
  redis.call('ZADD', queue, 'NX', now, worker)
  redis.call('ZADD', heard, now + patience, worker)
  local turn, round, places = redis.call('ZRANK', queue, worker), size(queue), room()
  for i = 1, wanted do
    local id = ARGV[10 + i]
    if redis.call('ZSCORE', leases, id) then  -- given before, and the answer was lost
      delays[i] = 0
    elseif turn < places then
      redis.call('ZADD', leases, now + lease, id)
      delays[i] = due - now
      due, turn, served = due + interval, turn + round, true
    else
      delays[i], waits = -1, true
    end
  end
end
if waits then
  if served then redis.call('ZADD', queue, now, worker) end
  local turn = redis.call('ZRANK', queue, worker)
  pause = math.max(1, due + interval * turn - now - ahead)
  if now < shut or turn >= limit - size(leases) then pause = math.max(pause, poll * (turn + 1)) end
else
  leave(worker)
end

-- Whoever leaves room tells those whom it is for, if the server lets us.
for _, who in ipairs(welcome()) do
  if not told[who] then redis.pcall('PUBLISH', queue .. ':' .. who, '') end
end

redis.call('HSET', state, 'epoch', epoch, 'leases', size(leases), 'queue', size(queue),
  'clock', clock, 'now', now, 'due', due, 'kept', kept, 'shut', shut)
if size(queue) + size(leases) > 0 then
  redis.call('PERSIST', state)  -- whatever can expire, a server short of memory may evict
else
  redis.call('EXPIRE', state, 86400)
end
return {lost, delays, pause, gone, epoch}
"""
"""One step of one process, for Redis 5 or newer.

ARGV: the process, limit, lease, interval, ahead, patience, the pause of the next in line, the epoch
that this process knows or nothing, how many ids of leases it wants, how many it gives back; then
the ids of these, those, and the ones that it renews.

Returns which of the latter are lost; for each that it wants, in how many microseconds its dial may
begin, or -1; in how many microseconds to ask again, or 0; how many of those that it renews were not
there; the epoch.
"""
