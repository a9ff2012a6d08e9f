#include "bench/handoff_bench/transfer_pair.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/handoff_bench/slots.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "kvtransfer/agent/transfer_agent.h"
#include "kvtransfer/channel/ucx_channel.h"

namespace sluice::bench {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr absl::Duration kMaxSleep = absl::Milliseconds(100);

absl::Duration Median(std::vector<absl::Duration> values) {
  if (values.empty()) return absl::ZeroDuration();
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Receiver {
 public:
  Receiver(const PairOptions& options, SendingProcess* sender)
      : options_(options), sender_(sender) {}

  absl::StatusOr<PairResult> Run(int num_warm_up, int num_counted) {
    SLUICE_ASSIGN_OR_RETURN(slots_, Slots::Create(options_));
    UcxOptions ucx;
    ucx.tls = options_.tls;
    SLUICE_ASSIGN_OR_RETURN(channel_, CreateUcxChannel(ucx));
    agent_ = TransferAgent::Create(TransferOptions(), kReceiver, channel_.get(), &RealClock());
    SLUICE_RETURN_IF_ERROR(sender_->Tell(channel_->LocalAddress()));

    const int num_all = num_warm_up + num_counted;
    for (int slot = 0; slot < std::min(options_.num_transfers_at_once, num_all); ++slot) {
      SLUICE_RETURN_IF_ERROR(Begin(slot));
    }
    PairResult result;
    std::vector<absl::Duration> durations;
    std::vector<absl::Duration> exposed;
    absl::Time began = MonotonicNow();
    absl::Time ended = began;
    int num_received = 0;
    std::vector<TransferEvent> events;
    for (absl::Time last = began; num_received < num_all;) {
      events.clear();
      const bool moved = agent_->Poll(&events);
      for (const TransferEvent& event : events) {
        if (const auto* end = std::get_if<ReceiveEnded>(&event)) {
          if (!end->status.ok()) return end->status;
          const int slot = slot_of_.extract(end->transfer).mapped();
          if (num_begun_ < num_all) SLUICE_RETURN_IF_ERROR(Begin(slot));
        }
        const auto* received = std::get_if<Received>(&event);
        if (received == nullptr) continue;
        ended = last = MonotonicNow();
        if (++num_received == num_warm_up) began = ended;
        if (num_received <= num_warm_up) continue;
        durations.push_back(received->duration);
        exposed.push_back(received->exposed);
      }
      const absl::Time now = MonotonicNow();
      if (now - last > kPatience) return absl::DeadlineExceededError("nothing arrives any more");
      if (moved || num_received == num_all) continue;
      const absl::Duration sleep = std::min(agent_->NextDeadline() - now, kMaxSleep);
      if (sleep > absl::ZeroDuration()) channel_->WaitForActivity(sleep);
    }
    for (const PeerTransport& transport : agent_->Transports())
      result.transport = transport.transport;
    result.bytes_per_second = static_cast<double>(slots_->slot_bytes()) * num_counted /
                              absl::ToDoubleSeconds(ended - began);
    result.median_duration = Median(std::move(durations));
    result.median_exposed = Median(std::move(exposed));
    return result;
  }

 private:
  absl::Status Begin(int slot) {
    ReceiveSpec spec;
    ++num_begun_;
    std::memcpy(spec.request.bytes.data(), &num_begun_, sizeof(num_begun_));
    spec.attempt = Attempt(1);
    spec.fingerprint = "bench";
    spec.end_token = options_.blocks_per_transfer * kBlockTokens;
    spec.block_bytes = options_.block_bytes;
    for (int block = 0; block < options_.blocks_per_transfer; ++block) {
      spec.blocks.push_back(slots_->Block(slot, block));
    }
    SLUICE_ASSIGN_OR_RETURN(const TransferId transfer, agent_->Reserve(spec));
    slot_of_[transfer] = slot;
    return sender_->Order({transfer, spec.request, slot});
  }

  const PairOptions options_;
  SendingProcess* const sender_;
  std::optional<Slots> slots_;
  std::unique_ptr<KvChannel> channel_;
  std::unique_ptr<TransferAgent> agent_;
  std::map<TransferId, int> slot_of_;
  int num_begun_ = 0;
};

}  // namespace

absl::StatusOr<PairResult> RunPair(const PairOptions& options, int num_warm_up, int num_counted) {
  SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<SendingProcess> sender, SendingProcess::Start(options));
  return Receiver(options, sender.get()).Run(num_warm_up, num_counted);
}

}  // namespace sluice::bench
