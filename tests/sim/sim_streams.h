// The streams between workers and routers in the cluster simulation. As over TCP, messages of one
// direction keep their order and none is lost while the stream lives; a direction can be cut, which
// holds everything until it heals, and either end can die, loudly or without a word. One thread.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "services/router/core/messages.h"
#include "tests/sim/chance.h"

namespace sluice::testing {

// What streams need of the world around them. Workers and routers are numbered by slot; a session
// names one stream between one life of each.
struct StreamsWorld {
  std::function<void(absl::Duration, std::function<void()>)> after;
  // False: the process is paused, and reads nothing.
  std::function<bool(int worker)> worker_reads;
  std::function<void(int router, router::Event)> to_router;
  std::function<void(int worker, router::SessionId, router::Action)> to_worker;
  // The worker's end was closed from outside; it has read what came before.
  std::function<void(int worker, int router, router::SessionId)> closed_at_worker;
};

class SimStreams {
 public:
  // `clock` and `chance` outlive this.
  SimStreams(const Clock* clock, Chance* chance, StreamsWorld world)
      : clock_(clock), chance_(chance), world_(std::move(world)) {}

  router::SessionId Open(int worker, int router);
  // Dropped when that end is closed.
  void SendUp(router::SessionId session, router::Event event);
  void SendDown(router::SessionId session, router::Action action);
  bool open_at_worker(router::SessionId session) const { return Get(session).worker_open; }
  int worker_of(router::SessionId session) const { return Get(session).worker; }

  // The router is done with it; the worker hears of it when it has read the rest.
  void CloseByRouter(router::SessionId session);
  // A connection is reset: both ends hear of it, at their own time.
  void Break(router::SessionId session);
  // Streams with both ends open.
  std::vector<router::SessionId> OpenStreams() const;
  // All streams of a process that died. Silent: the other end hears nothing (its machine is gone,
  // not only the process).
  void WorkerDied(int worker, bool silent);
  void RouterDied(int router, bool silent);
  // What a machine that is back answers to streams it does not know.
  void ResetStreamsOfDeadRouter(int router);

  enum class Direction { kUp, kDown };
  void Cut(int worker, int router, Direction direction);
  void HealAll();
  bool IsCut(int worker, int router) const;
  // Reads on after a pause.
  void PumpWorker(int worker);

  // A message takes up to `max` instead of 2 ms with this probability.
  void set_slow(double probability) { slow_ = probability; }

 private:
  // Of one direction; an empty message closes it.
  template <typename Message>
  struct Lane {
    absl::Time last;
    std::deque<std::pair<absl::Time, std::optional<Message>>> queue;
  };
  struct Stream {
    int worker = 0;
    int router = 0;
    bool router_open = true;
    bool worker_open = true;
    Lane<router::Event> up;
    Lane<router::Action> down;
  };

  template <typename Message>
  void Push(router::SessionId session, Lane<Message>* lane, std::optional<Message> message);
  template <typename Message>
  void PushClose(router::SessionId session, Lane<Message>* lane);
  Stream& Get(router::SessionId session) { return streams_.at(session); }
  const Stream& Get(router::SessionId session) const { return streams_.at(session); }
  std::vector<router::SessionId> Where(const std::function<bool(const Stream&)>& condition) const;
  void Pump(router::SessionId session);
  bool HasDue(const Stream& stream, Direction direction) const;

  const Clock* const clock_;
  Chance* const chance_;
  const StreamsWorld world_;
  std::map<router::SessionId, Stream> streams_;  // never erased: a run has few
  std::set<std::tuple<int, int, Direction>> cuts_;
  uint64_t last_session_ = 0;
  double slow_ = 0;
};

}  // namespace sluice::testing
