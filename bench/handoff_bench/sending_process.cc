#include "bench/handoff_bench/sending_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "bench/handoff_bench/slots.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "kvtransfer/agent/transfer_agent.h"
#include "kvtransfer/channel/ucx_channel.h"

namespace sluice::bench {
namespace {

constexpr absl::Duration kMaxSleep = absl::Milliseconds(1);  // orders come by a socket

// One order under way: chunks are offered when they would have been computed.
struct Sending {
  SendOrder order;
  int num_offered = 0;  // blocks
  absl::Time next_chunk;
};

class Sender {
 public:
  Sender(PairOptions options, int socket) : options_(std::move(options)), socket_(socket) {}

  absl::Status Run() {
    SLUICE_RETURN_IF_ERROR(Init());
    std::vector<TransferEvent> events;
    while (true) {
      SendOrder order;
      const ssize_t got = recv(socket_, &order, sizeof(order), MSG_DONTWAIT);
      if (got == 0) return absl::OkStatus();
      if (got == sizeof(order)) SLUICE_RETURN_IF_ERROR(Begin(order));
      SLUICE_RETURN_IF_ERROR(OfferChunks());
      events.clear();
      const bool moved = agent_->Poll(&events);
      for (const TransferEvent& event : events) {
        const auto* ended = std::get_if<SendEnded>(&event);
        if (ended != nullptr && !ended->status.ok()) return ended->status;
      }
      if (moved) continue;
      const absl::Duration until_deadline = agent_->NextDeadline() - MonotonicNow();
      if (until_deadline > absl::ZeroDuration()) {
        channel_->WaitForActivity(std::min(until_deadline, kMaxSleep));
      }
    }
  }

 private:
  absl::Status Init() {
    char address[4096];
    const ssize_t size = recv(socket_, address, sizeof(address), 0);
    if (size <= 0) return absl::UnavailableError("no address to send to");
    receiver_address_.assign(address, static_cast<size_t>(size));
    UcxOptions ucx;
    ucx.tls = options_.tls;
    SLUICE_ASSIGN_OR_RETURN(channel_, CreateUcxChannel(ucx));
    agent_ = TransferAgent::Create(TransferOptions(), kSender, channel_.get(), &RealClock());
    SLUICE_ASSIGN_OR_RETURN(slots_, Slots::Create(options_));
    return absl::OkStatus();
  }

  absl::Status Begin(const SendOrder& order) {
    SendSpec spec;
    spec.transfer = order.transfer;
    spec.request = order.request;
    spec.attempt = Attempt(1);
    spec.peer_address = receiver_address_;
    spec.peer_incarnation = kReceiver;
    spec.fingerprint = "bench";
    spec.end_token = options_.blocks_per_transfer * kBlockTokens;
    spec.block_bytes = options_.block_bytes;
    SLUICE_RETURN_IF_ERROR(agent_->StartSend(spec));
    sendings_.push_back({order, 0, MonotonicNow() + options_.chunk_duration});
    return absl::OkStatus();
  }

  absl::Status OfferChunks() {
    for (Sending& sending : sendings_) {
      if (MonotonicNow() < sending.next_chunk) continue;
      const int begin = sending.num_offered;
      const int end = std::min(begin + options_.chunk_blocks, options_.blocks_per_transfer);
      std::vector<absl::Span<const uint8_t>> blocks;
      for (int block = begin; block < end; ++block) {
        blocks.push_back(slots_->Block(sending.order.slot, block));
      }
      SLUICE_RETURN_IF_ERROR(agent_->Offer(sending.order.transfer, begin * kBlockTokens,
                                           end * kBlockTokens, std::move(blocks)));
      sending.num_offered = end;
      sending.next_chunk += options_.chunk_duration;
      if (end == options_.blocks_per_transfer) {
        SLUICE_RETURN_IF_ERROR(agent_->FinishSend(sending.order.transfer, FirstToken()));
      }
    }
    std::erase_if(sendings_, [this](const Sending& sending) {
      return sending.num_offered == options_.blocks_per_transfer;
    });
    return absl::OkStatus();
  }

  const PairOptions options_;
  const int socket_;
  std::string receiver_address_;
  std::unique_ptr<KvChannel> channel_;
  std::unique_ptr<TransferAgent> agent_;
  std::optional<Slots> slots_;
  std::vector<Sending> sendings_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SendingProcess>> SendingProcess::Start(const PairOptions& options) {
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0) {
    return absl::InternalError(absl::StrCat("socketpair: ", strerror(errno)));
  }
  const pid_t pid = fork();
  if (pid < 0) return absl::InternalError(absl::StrCat("fork: ", strerror(errno)));
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(sockets[0]);
    const absl::Status status = Sender(options, sockets[1]).Run();
    if (!status.ok()) std::fprintf(stderr, "sender: %s\n", status.ToString().c_str());
    _exit(status.ok() ? 0 : 1);
  }
  close(sockets[1]);
  return std::unique_ptr<SendingProcess>(new SendingProcess(pid, sockets[0]));
}

SendingProcess::~SendingProcess() {
  close(socket_);
  waitpid(pid_, nullptr, 0);
}

absl::Status SendingProcess::Tell(const std::string& receiver_address) {
  const ssize_t sent =
      send(socket_, receiver_address.data(), receiver_address.size(), MSG_NOSIGNAL);
  return sent == static_cast<ssize_t>(receiver_address.size())
             ? absl::OkStatus()
             : absl::UnavailableError("the sending process has ended");
}

absl::Status SendingProcess::Order(const SendOrder& order) {
  return send(socket_, &order, sizeof(order), MSG_NOSIGNAL) == sizeof(order)
             ? absl::OkStatus()
             : absl::UnavailableError("the sending process has ended");
}

}  // namespace sluice::bench
