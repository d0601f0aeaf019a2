"""What happens in Redis: one step of one process, which is atomic. It knows no pool."""

from __future__ import annotations

from typing import Final

SCRIPT: Final = """
local leases, queue, heard, state, promises = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local worker, limit, lease = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local interval, ahead, patience = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local poll, known = tonumber(ARGV[7]), ARGV[8]
local needed = tonumber(ARGV[9])
local place = 13
local function ids(count)
  local some = {}
  for i = 1, count do some[i] = ARGV[place + i] end
  place = place + count
  return some
end
local wanted, released = ids(tonumber(ARGV[10])), ids(tonumber(ARGV[11]))
local offered, withdrawn = ids(tonumber(ARGV[12])), ids(tonumber(ARGV[13]))
local renewed = ids(#ARGV - place)
local time = redis.call('TIME')
local clock = time[1] * 1000000 + time[2]  -- all times are in microseconds
local grace = math.floor(lease / 3)

local function size(key) return redis.call('ZCARD', key) end

-- Where some of the data is gone, all of it is: it begins again, as another epoch. Those who had
-- leases may enter them before anybody gets another, once an epoch.
local epoch, had = redis.call('HGET', state, 'epoch'), {}
local names = {'leases', 'queue', 'clock', 'now', 'due', 'kept', 'shut', 'needed', 'called'}
for _, name in ipairs(names) do
  had[name] = tonumber(redis.call('HGET', state, name) or 0)
end
local is_torn = had.leases ~= size(leases) or had.queue ~= size(queue) or had.queue ~= size(heard)
if is_torn or not epoch then
  redis.call('DEL', leases, queue, heard, state, promises)
  epoch = worker .. '.' .. string.format('%.0f', clock)
  had = {clock = clock, now = clock, due = 0, kept = 0, shut = 0, needed = 0, called = 0}
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
-- For how many leases somebody waits in this process, and in all of them together.
local function need(who, count)
  local field = 'need:' .. who
  local before = tonumber(redis.call('HGET', state, field) or 0)
  had.needed = had.needed + count - before
  if count > 0 then
    redis.call('HSET', state, field, count)
  elseif before > 0 then
    redis.call('HDEL', state, field)
  end
end
-- How many of these neither are there nor were promised.
local function missing()
  return math.max(0, had.needed - math.max(0, limit - size(leases)) - size(promises))
end
local function leave(who)
  redis.call('ZREM', queue, who)
  redis.call('ZREM', heard, who)
  need(who, 0)
end

for _, id in ipairs(released) do redis.call('ZREM', leases, id) end
for _, id in ipairs(withdrawn) do redis.call('ZREM', promises, id) end
local lost, gone = {}, 0
for i, id in ipairs(renewed) do
  local is_there = redis.call('ZSCORE', leases, id)
  if not is_there then gone = gone + 1 end
  if is_there or size(leases) < limit then
    redis.call('ZADD', leases, now + lease, id)
  else
    lost[#lost + 1] = i - 1
  end
end
if now >= kept then
  redis.call('ZREMRANGEBYSCORE', leases, '-inf', now)
end
for _, who in ipairs(redis.call('ZRANGEBYSCORE', heard, '-inf', now)) do leave(who) end
redis.call('ZREMRANGEBYSCORE', promises, '-inf', now)

local delays, pause, waits, served = {}, 0, false, false
if #wanted > 0 then
  redis.call('ZADD', queue, 'NX', now, worker)
  redis.call('ZADD', heard, now + patience, worker)
  local turn, round, places = redis.call('ZRANK', queue, worker), size(queue), room()
  for i, id in ipairs(wanted) do
    if redis.call('ZSCORE', leases, id) then  -- given before, and the answer was lost
      delays[i], needed = 0, needed - 1
    elseif turn < places then
      redis.call('ZADD', leases, now + lease, id)
      delays[i] = due - now
      due, turn, served = due + interval, turn + round, true
      needed = needed - 1
    else
      delays[i], waits = -1, true
    end
  end
end
if waits then
  need(worker, math.max(0, needed))
  if served then redis.call('ZADD', queue, now, worker) end
  local turn = redis.call('ZRANK', queue, worker)
  pause = math.max(1, due + interval * turn - now - ahead)
  if now < shut or turn >= limit - size(leases) then pause = math.max(pause, poll * (turn + 1)) end
else
  leave(worker)
end

-- What this process can do without is taken as far as it is missing.
local taken = math.min(#offered, missing())
for i = 1, taken do redis.call('ZADD', promises, now + patience, offered[i]) end
-- All are told when leases begin to be missing, and when none is any more.
local called = missing() > 0 and 1 or 0
if called ~= had.called then redis.pcall('PUBLISH', queue .. ':needed', called) end

-- Whoever leaves room tells those whom it is for, if the server lets us.
for _, who in ipairs(welcome()) do
  if not told[who] then redis.pcall('PUBLISH', queue .. ':' .. who, '') end
end

redis.call('HSET', state, 'epoch', epoch, 'leases', size(leases), 'queue', size(queue),
  'clock', clock, 'now', now, 'due', due, 'kept', kept, 'shut', shut, 'needed', had.needed,
  'called', called)
if size(queue) + size(leases) > 0 then
  redis.call('PERSIST', state)  -- whatever can expire, a server short of memory may evict
else
  redis.call('DEL', promises)
  redis.call('EXPIRE', state, 86400)
end
return {lost, delays, pause, gone, epoch, taken, called}
"""
"""One step of one process, for Redis 5 or newer.

ARGV: the process, limit, lease, interval, ahead, patience, the pause of the next in line, the epoch
that this process knows or nothing, for how many of the leases that it wants somebody waits; how
many ids follow of each kind but the last: of leases that it wants and that it gives back, of
promises to give one back that it offers and that are over. The last are those that it renews.

Returns which of the latter are lost; for each that it wants, in how many microseconds its dial may
begin, or -1; in how many microseconds to ask again, or 0; how many of those that it renews were not
there; the epoch; how many of the promises are taken, the first ones; 1 if leases are missing, or 0.
"""
