// A router for tests: an in-process gRPC server that speaks the router's side of Fleet.Attach,
// records what workers say, and says what the test tells it to. Thread-safe.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "sluice/v1/fleet.pb.h"

namespace grpc {
class Server;
}

namespace sluice::testing {

class FakeRouter {
 public:
  // `port` 0: any free one. Aborts when it is taken.
  explicit FakeRouter(int port = 0);
  ~FakeRouter();  // drops every stream

  int port() const { return port_; }
  std::string address() const;

  // Workers are refused with this text from now on; "" accepts.
  void RefuseWith(std::string error);
  // Neither heartbeats nor Welcome are sent while muted; streams stay open.
  void Mute(bool muted);
  // Stops reading from workers: their sends pile up.
  void StopReading(bool stopped);
  // Ends every stream; new ones are accepted.
  void DropStreams();

  // Waits until this worker is registered. False after `timeout`.
  bool WaitForWorker(const std::string& worker_id, absl::Duration timeout = absl::Seconds(10));
  bool IsAttached(const std::string& worker_id) const;
  v1::Register registration(const std::string& worker_id) const;
  int num_registrations() const;

  // False: the worker is not attached.
  bool Send(const std::string& worker_id, const v1::RouterMessage& message);

  struct Heard {
    std::string worker_id;
    v1::WorkerMessage message;
  };
  // Waits for a message, old or new, that satisfies `predicate`; fails the test after `timeout`.
  v1::WorkerMessage WaitFor(const std::string& what,
                            const std::function<bool(const Heard&)>& predicate,
                            absl::Duration timeout = absl::Seconds(10));
  // Everything heard so far but load reports.
  std::vector<Heard> heard() const;
  v1::LoadReport last_load(const std::string& worker_id) const;

 private:
  class Service;
  friend class Service;
  struct Connection;

  void HeartbeatLoop();

  std::unique_ptr<Service> service_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
  std::thread heartbeats_;

  mutable absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool muted_ ABSL_GUARDED_BY(mu_) = false;
  bool reading_stopped_ ABSL_GUARDED_BY(mu_) = false;
  std::string refusal_ ABSL_GUARDED_BY(mu_);
  std::vector<Connection*> connections_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, v1::Register> registrations_ ABSL_GUARDED_BY(mu_);
  int num_registrations_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<Heard> heard_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, v1::LoadReport> loads_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sluice::testing
