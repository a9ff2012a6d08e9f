#include "tests/sim/sim_streams.h"

#include <algorithm>

namespace sluice::testing {
namespace {

constexpr absl::Duration kMinDelay = absl::Microseconds(100);
constexpr absl::Duration kMaxDelay = absl::Milliseconds(2);
constexpr absl::Duration kMaxSlowDelay = absl::Milliseconds(300);

}  // namespace

router::SessionId SimStreams::Open(int worker, int router) {
  const router::SessionId session(++last_session_);
  Stream stream;
  stream.worker = worker;
  stream.router = router;
  stream.up.last = stream.down.last = clock_->Now();
  streams_.emplace(session, std::move(stream));
  return session;
}

void SimStreams::SendUp(router::SessionId session, router::Event event) {
  Stream& stream = Get(session);
  if (stream.worker_open) {
    Push<router::Event>(session, &stream.up, std::move(event));
  }
}

void SimStreams::SendDown(router::SessionId session, router::Action action) {
  Stream& stream = Get(session);
  if (stream.router_open) {
    Push<router::Action>(session, &stream.down, std::move(action));
  }
}

template <typename Message>
void SimStreams::Push(router::SessionId session, Lane<Message>* lane,
                      std::optional<Message> message) {
  const absl::Time now = clock_->Now();
  const absl::Duration delay =
      kMinDelay + chance_->UpTo(chance_->Once(slow_) ? kMaxSlowDelay : kMaxDelay);
  lane->last = std::max(lane->last, now + delay);
  lane->queue.emplace_back(lane->last, std::move(message));
  world_.after(lane->last - now, [this, session] { Pump(session); });
}

// Behind what is on its way, or instead of it.
template <typename Message>
void SimStreams::PushClose(router::SessionId session, Lane<Message>* lane) {
  if (chance_->Once(0.5)) lane->queue.clear();
  Push<Message>(session, lane, std::nullopt);
}

void SimStreams::CloseByRouter(router::SessionId session) {
  Stream& stream = Get(session);
  if (!stream.router_open) return;
  stream.router_open = false;
  Push<router::Action>(session, &stream.down, std::nullopt);
}

void SimStreams::Break(router::SessionId session) {
  PushClose(session, &Get(session).up);
  PushClose(session, &Get(session).down);
}

std::vector<router::SessionId> SimStreams::Where(
    const std::function<bool(const Stream&)>& condition) const {
  std::vector<router::SessionId> found;
  for (const auto& [session, stream] : streams_) {
    if (condition(stream)) found.push_back(session);
  }
  return found;
}

std::vector<router::SessionId> SimStreams::OpenStreams() const {
  return Where([](const Stream& s) { return s.worker_open && s.router_open; });
}

void SimStreams::WorkerDied(int worker, bool silent) {
  for (router::SessionId session :
       Where([&](const Stream& s) { return s.worker == worker && s.worker_open; })) {
    Stream& stream = Get(session);
    stream.worker_open = false;
    stream.down.queue.clear();
    if (!silent) PushClose(session, &stream.up);
  }
}

void SimStreams::RouterDied(int router, bool silent) {
  for (router::SessionId session :
       Where([&](const Stream& s) { return s.router == router && s.router_open; })) {
    Stream& stream = Get(session);
    stream.router_open = false;
    stream.up.queue.clear();
    if (!silent) PushClose(session, &stream.down);
  }
}

void SimStreams::ResetStreamsOfDeadRouter(int router) {
  for (router::SessionId session : Where([&](const Stream& s) {
         return s.router == router && s.worker_open && !s.router_open;
       })) {
    Push<router::Action>(session, &Get(session).down, std::nullopt);
  }
}

void SimStreams::Cut(int worker, int router, Direction direction) {
  cuts_.insert({worker, router, direction});
}

void SimStreams::HealAll() {
  cuts_.clear();
  for (router::SessionId session : Where([](const Stream&) { return true; })) Pump(session);
}

bool SimStreams::IsCut(int worker, int router) const {
  return cuts_.contains({worker, router, Direction::kUp}) ||
         cuts_.contains({worker, router, Direction::kDown});
}

void SimStreams::PumpWorker(int worker) {
  for (router::SessionId session :
       Where([&](const Stream& s) { return s.worker == worker && s.worker_open; })) {
    Pump(session);
  }
}

bool SimStreams::HasDue(const Stream& stream, Direction direction) const {
  if (cuts_.contains({stream.worker, stream.router, direction})) return false;
  const absl::Time now = clock_->Now();
  if (direction == Direction::kUp) {
    return stream.router_open && !stream.up.queue.empty() && stream.up.queue.front().first <= now;
  }
  return stream.worker_open && world_.worker_reads(stream.worker) && !stream.down.queue.empty() &&
         stream.down.queue.front().first <= now;
}

void SimStreams::Pump(router::SessionId session) {
  Stream& stream = Get(session);  // std::map: stays where it is, whatever the callbacks open
  while (HasDue(stream, Direction::kUp)) {
    std::optional<router::Event> event = std::move(stream.up.queue.front().second);
    stream.up.queue.pop_front();
    if (event.has_value()) {
      world_.to_router(stream.router, *std::move(event));
    } else {
      stream.router_open = false;
      world_.to_router(stream.router, router::WorkerLeft{session, "the stream ended"});
    }
  }
  while (HasDue(stream, Direction::kDown)) {
    std::optional<router::Action> action = std::move(stream.down.queue.front().second);
    stream.down.queue.pop_front();
    if (action.has_value()) {
      world_.to_worker(stream.worker, session, *std::move(action));
    } else {
      stream.worker_open = false;
      world_.closed_at_worker(stream.worker, stream.router, session);
    }
  }
}

}  // namespace sluice::testing
