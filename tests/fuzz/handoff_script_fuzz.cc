// One transfer after another between two real agents on the simulated network. Input: a script of
// what the engines do (reserve, offer, finish, cancel), what the network does (faults, cuts,
// pauses, crashes, time) and what a stranger who learned the transfer's id sends.
//   - each transfer ends once on each side, and only when the network no longer touches its blocks;
//   - a delivered block holds what was offered, and a committed send was delivered;
//   - when the faults stop, everything ends and no agent wants to wake up.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "kvtransfer/agent/transfer_agent.h"
#include "kvtransfer/channel/sim_channel.h"
#include "tests/fuzz/byte_source.h"

namespace sluice {
namespace {

constexpr int kBlockTokens = 4;
constexpr size_t kBlockBytes = 64;
constexpr int kMaxBlocks = 8;
constexpr int kMaxSteps = 300;
constexpr int kMaxTransfers = 8;

using Blocks = std::vector<std::vector<uint8_t>>;

Blocks MakeBlocks(int count, int fill) {
  return Blocks(static_cast<size_t>(count),
                std::vector<uint8_t>(kBlockBytes, static_cast<uint8_t>(fill)));
}

struct Process {
  Process(SimNetwork* network, const std::string& name, uint64_t number)
      : incarnation(number), channel(network->NewChannel(name)) {
    TransferOptions options;
    options.window_bytes = 3 * kBlockBytes;
    options.target_message_bytes = 2 * kBlockBytes;
    options.lease = absl::Seconds(2);
    options.max_tombstones = 2;
    agent = TransferAgent::Create(options, incarnation, channel.get(), network);
  }
  Incarnation incarnation;
  std::unique_ptr<SimChannel> channel;
  std::unique_ptr<TransferAgent> agent;  // gone before the channel
  bool paused = false;
};

// One side's view of the transfer under way.
struct Side {
  Blocks blocks;
  bool active = false;
};

class Script {
 public:
  explicit Script(fuzz::ByteSource source) : source_(source), network_(1) {
    stranger_ = network_.NewChannel("stranger");
    Restart(&prefill_, "p");
    Restart(&decode_, "d");
  }
  ~Script() {  // agents before the memory they were lent
    prefill_.reset();
    decode_.reset();
  }

  void Run() {
    for (int step = 0; step < kMaxSteps && !source_.empty(); ++step) {
      Step();
      Advance(absl::ZeroDuration());
    }
    network_.set_faults(SimFaults());
    network_.HealAllLinks();
    SetPaused(prefill_.get(), false);
    SetPaused(decode_.get(), false);
    if (send_.active && !finished_) Abandon();
    Advance(absl::Seconds(60));
    SLUICE_CHECK(!send_.active && !receive_.active);
    for (const Process* process : {prefill_.get(), decode_.get()}) {
      SLUICE_CHECK(process->agent->Stats().sends_in_flight == 0);
      SLUICE_CHECK(process->agent->Stats().receives_in_flight == 0);
      SLUICE_CHECK(process->agent->NextDeadline() == absl::InfiniteFuture());
    }
  }

 private:
  void Step() {
    switch (source_.Below(14)) {
      case 0:
        Begin();
        break;
      case 1:
        Offer(1 + source_.Below(kMaxBlocks));
        break;
      case 2:
        Finish();
        break;
      case 3:
        Abandon();
        break;
      case 4:
        if (receive_.active && !decode_->paused) {
          decode_->agent->CancelReceive(transfer_, absl::CancelledError("script"));
        }
        break;
      case 5:
        Advance(absl::Milliseconds(1 + 10 * source_.Byte()));
        break;
      case 6:
        SetFaults();
        break;
      case 7:
        network_.Cut(prefill_->channel.get(), decode_->channel.get());
        break;
      case 8:
        network_.Cut(decode_->channel.get(), prefill_->channel.get());
        break;
      case 9:
        network_.HealAllLinks();
        break;
      case 10:
        SetPaused(source_.Bool() ? prefill_.get() : decode_.get(), source_.Bool());
        break;
      case 11:
        send_.active = false;
        Restart(&prefill_, "p");
        break;
      case 12:
        receive_.active = false;
        Restart(&decode_, "d");
        break;
      default:
        SendAsStranger();
    }
  }

  void Restart(std::unique_ptr<Process>* process, const std::string& name) {
    process->reset();  // its memory is not touched afterwards
    *process = std::make_unique<Process>(&network_, name, ++last_incarnation_);
  }

  void SetPaused(Process* process, bool paused) {
    process->paused = paused;
    network_.SetPaused(process->channel.get(), paused);
  }

  void SetFaults() {
    SimFaults faults;
    auto probability = [this] { return source_.Below(4) / 8.0; };
    faults.eager_bytes = source_.Bool() ? 4 * kBlockBytes : 16;
    faults.slow = probability();
    faults.drop = probability();
    faults.duplicate = probability();
    faults.damage_header = probability();
    faults.damage_payload = probability();
    faults.fail_receive = probability();
    network_.set_faults(faults);
  }

  void Begin() {
    if (send_.active || receive_.active || num_transfers_ == kMaxTransfers) return;
    if (prefill_->paused || decode_->paused) return;
    ++num_transfers_;
    num_blocks_ = 1 + source_.Below(kMaxBlocks);
    end_token_ = num_blocks_ * kBlockTokens - source_.Below(kBlockTokens);
    num_offered_ = 0;
    delivered_ = finished_ = interfered_ = false;
    RequestId request;
    request.bytes[0] = static_cast<uint8_t>(num_transfers_);

    receive_ = {MakeBlocks(num_blocks_, 0xdd), true};
    ReceiveSpec receive;
    receive.request = request;
    receive.attempt = Attempt(1);
    receive.fingerprint = "model";
    receive.end_token = end_token_;
    receive.block_bytes = kBlockBytes;
    receive.block_tokens = kBlockTokens;
    for (std::vector<uint8_t>& block : receive_.blocks) {
      receive.blocks.push_back(absl::MakeSpan(block));
    }
    const absl::StatusOr<TransferId> transfer = decode_->agent->Reserve(receive);
    SLUICE_CHECK(transfer.ok());
    transfer_ = *transfer;

    send_ = {MakeBlocks(num_blocks_, 0), true};
    for (int i = 0; i < num_blocks_; ++i) send_.blocks[i].assign(kBlockBytes, Content(i));
    SendSpec send;
    send.transfer = transfer_;
    send.request = request;
    send.attempt = Attempt(1);
    send.peer_address = decode_->channel->LocalAddress();
    send.peer_incarnation = decode_->incarnation;
    send.fingerprint = source_.Below(16) == 15 ? "other model" : "model";
    send.end_token = end_token_;
    send.block_bytes = kBlockBytes;
    send.block_tokens = kBlockTokens;
    SLUICE_CHECK(prefill_->agent->StartSend(send).ok());
  }

  uint8_t Content(int block) const {
    return static_cast<uint8_t>(1 + num_transfers_ * kMaxBlocks + block);
  }

  void Offer(int count) {
    count = std::min(count, num_blocks_ - num_offered_);
    if (!send_.active || prefill_->paused || count == 0) return;
    std::vector<absl::Span<const uint8_t>> spans;
    for (int i = 0; i < count; ++i) spans.push_back(send_.blocks[num_offered_ + i]);
    const absl::Status status = prefill_->agent->Offer(
        transfer_, num_offered_ * kBlockTokens,
        std::min(end_token_, (num_offered_ + count) * kBlockTokens), std::move(spans));
    SLUICE_CHECK(status.ok() || absl::IsNotFound(status));  // not found: its end is on the way
    num_offered_ += count;
  }

  void Finish() {
    if (!send_.active || prefill_->paused || finished_) return;
    const absl::Status status = prefill_->agent->FinishSend(transfer_, {7, -1.0f, {}});
    const bool complete = num_offered_ == num_blocks_;
    SLUICE_CHECK(status.ok() ? complete : complete ? absl::IsNotFound(status) : true);
    finished_ = status.ok();
  }

  void Abandon() {
    if (!send_.active || prefill_->paused) return;
    prefill_->agent->CancelSend(transfer_, absl::CancelledError("script"));
  }

  // Frames that the real peers did not send. What they claim may end the transfer or make it seem
  // committed (who knows the id may speak for it), but must not touch memory that is not lent.
  void SendAsStranger() {
    const bool to_decode = source_.Bool();
    const Process& target = to_decode ? *decode_ : *prefill_;
    handoff::Frame frame;
    frame.sender = source_.Bool() ? prefill_->incarnation : decode_->incarnation;
    frame.target = target.incarnation;
    frame.transfer = transfer_;
    frame.body = TakeBody();
    const auto peer = stranger_->Connect(target.channel->LocalAddress());
    if (!peer.ok()) return;
    interfered_ = true;
    const size_t payload_bytes = source_.Below(4) * kBlockBytes;
    std::vector<absl::Span<const uint8_t>> payload;
    if (payload_bytes > 0) payload.emplace_back(stranger_payload_.data(), payload_bytes);
    if (auto* offer = std::get_if<handoff::Offer>(&frame.body);
        offer != nullptr && source_.Bool()) {
      handoff::PayloadChecksum checksum(transfer_, offer->begin_token);
      checksum.Update(stranger_payload_.data(), payload_bytes);
      offer->checksum = checksum.Finish();
      offer->payload_bytes = payload_bytes;
    }
    (void)stranger_->Send(*peer, handoff::Encode(frame), std::move(payload),
                          OperationId(++last_operation_));
  }

  handoff::Body TakeBody() {
    auto number = [this] { return static_cast<uint32_t>(source_.Byte()) * source_.Byte(); };
    switch (source_.Below(10)) {
      case 0: {
        handoff::Bind bind;
        bind.request.bytes[0] = source_.Byte();
        bind.attempt = Attempt(number());
        bind.begin_token = number();
        bind.end_token = number();
        bind.block_tokens = number();
        bind.block_bytes = number();
        bind.fingerprint = source_.Bool() ? "model" : "other";
        bind.reply_address = source_.Bool() ? stranger_->LocalAddress() : "nobody";
        return bind;
      }
      case 1:
        return handoff::Offer{number(), number(), number(), number(), number()};
      case 2:
        return handoff::Ack{number(), std::string(source_.Raw(source_.Below(8))), number(),
                            number()};
      case 3:
        return handoff::Final{number(), number(), {1, 0, {}}};
      case 4:
        return handoff::Commit{};
      case 5:
        return handoff::Cancel{source_.Bool() ? handoff::Side::kSender : handoff::Side::kReceiver,
                               absl::StatusCode::kAborted, "stranger"};
      case 6:
        return handoff::CancelAck{source_.Bool() ? handoff::Side::kSender
                                                 : handoff::Side::kReceiver};
      case 7:
        return handoff::Nack{static_cast<handoff::NackCode>(1 + source_.Below(6)), number()};
      case 8: {
        handoff::Fetch fetch;
        fetch.into.bytes[0] = source_.Byte();
        fetch.begin_token = number();
        fetch.end_token = number();
        fetch.block_tokens = source_.Bool() ? kBlockTokens : number();
        fetch.block_bytes = source_.Bool() ? kBlockBytes : number();
        fetch.fingerprint = source_.Bool() ? "model" : "other";
        fetch.reply_address = source_.Bool() ? stranger_->LocalAddress() : "nobody";
        return fetch;
      }
      default:
        return handoff::Heartbeat{};
    }
  }

  absl::Time WakeTime(const Process& process) const {
    if (process.paused) return absl::InfiniteFuture();
    return process.channel->has_events() ? network_.Now() : process.agent->NextDeadline();
  }

  void Advance(absl::Duration duration) {
    const absl::Time until = network_.Now() + duration;
    for (int turns_without_time = 0;;) {
      const absl::Time now = network_.Now();
      absl::Time next = std::min(until, network_.NextEventTime());
      next = std::min({next, WakeTime(*prefill_), WakeTime(*decode_)});
      next = std::max(next, now);
      turns_without_time = next == now ? turns_without_time + 1 : 0;
      SLUICE_CHECK(turns_without_time < 5000);  // else somebody spins
      network_.AdvanceTo(next);
      std::vector<ChannelEvent> ignored;
      stranger_->Poll(&ignored);
      for (const ChannelEvent& event : ignored) {
        if (event.payload_bytes > 0) stranger_->Drop(event.payload);
      }
      for (Process* process : {prefill_.get(), decode_.get()}) {
        if (WakeTime(*process) <= next) Poll(process);
      }
      const absl::Time wake = std::min(WakeTime(*prefill_), WakeTime(*decode_));
      if (next >= until && wake > next) return;
    }
  }

  void Poll(Process* process) {
    std::vector<TransferEvent> events;
    process->agent->Poll(&events);
    for (const TransferEvent& event : events) {
      // No reservation of a script has a cached prefix that could be asked for.
      SLUICE_CHECK(!std::holds_alternative<FetchRequested>(event));
      if (const auto* ended = std::get_if<SendEnded>(&event)) OnSendEnded(*ended);
      if (const auto* received = std::get_if<Received>(&event)) OnReceived(*received);
      if (const auto* ended = std::get_if<ReceiveEnded>(&event)) OnReceiveEnded(*ended);
    }
  }

  void OnSendEnded(const SendEnded& event) {
    SLUICE_CHECK(send_.active && event.transfer == transfer_);
    for (const std::vector<uint8_t>& block : send_.blocks) {
      SLUICE_CHECK(!network_.MayRead(block));
    }
    if (event.status.ok() && !interfered_) SLUICE_CHECK(delivered_);
    send_.active = false;
  }

  void OnReceived(const Received& event) {
    SLUICE_CHECK(receive_.active && !delivered_ && event.transfer == transfer_);
    delivered_ = true;
    if (interfered_) return;
    for (int i = 0; i < num_blocks_; ++i) {
      const std::vector<uint8_t> expected(kBlockBytes, Content(i));
      SLUICE_CHECK(receive_.blocks[i] == expected);
    }
  }

  void OnReceiveEnded(const ReceiveEnded& event) {
    SLUICE_CHECK(receive_.active && event.transfer == transfer_);
    SLUICE_CHECK(event.status.ok() == delivered_);
    for (const std::vector<uint8_t>& block : receive_.blocks) {
      SLUICE_CHECK(!network_.MayWrite(block));
    }
    receive_.active = false;
  }

  fuzz::ByteSource source_;
  SimNetwork network_;
  std::unique_ptr<SimChannel> stranger_;
  std::unique_ptr<Process> prefill_;
  std::unique_ptr<Process> decode_;
  uint64_t last_incarnation_ = 0;
  uint64_t last_operation_ = 0;
  const std::vector<uint8_t> stranger_payload_ = std::vector<uint8_t>(4 * kBlockBytes, 0x99);

  // The transfer under way.
  int num_transfers_ = 0;
  TransferId transfer_;
  Side send_;
  Side receive_;
  int num_blocks_ = 0;
  int end_token_ = 0;
  int num_offered_ = 0;
  bool finished_ = false;
  bool delivered_ = false;
  bool interfered_ = false;
};

}  // namespace
}  // namespace sluice

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  sluice::Script(sluice::fuzz::ByteSource(data, size)).Run();
  return 0;
}
