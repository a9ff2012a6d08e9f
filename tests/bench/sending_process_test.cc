// The child of handoff_bench that plays the prefill worker.
#include "bench/handoff_bench/sending_process.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "common/clock.h"
#include "kvtransfer/agent/transfer_agent.h"
#include "kvtransfer/channel/ucx_channel.h"

namespace sluice::bench {
namespace {

// A benchmark whose transfers fail must not go on without them.
TEST(SendingProcess, EndsWhenASendFails) {
  PairOptions options;
  options.tls = "tcp";
  options.block_bytes = 4096;
  options.blocks_per_transfer = options.chunk_blocks = 2;
  options.num_transfers_at_once = 1;
  auto sender = SendingProcess::Start(options);
  ASSERT_TRUE(sender.ok()) << sender.status();

  UcxOptions ucx;
  ucx.tls = options.tls;
  auto channel = CreateUcxChannel(ucx);
  ASSERT_TRUE(channel.ok()) << channel.status();
  const std::unique_ptr<TransferAgent> agent =
      TransferAgent::Create(TransferOptions(), kReceiver, channel->get(), &RealClock());
  ASSERT_TRUE((*sender)->Tell((*channel)->LocalAddress()).ok());

  // Nobody has reserved these: the receiver does not answer, and the sender gives them up.
  absl::Status status;
  std::vector<TransferEvent> events;
  const absl::Time end = MonotonicNow() + absl::Seconds(30);
  for (uint8_t i = 1; status.ok() && MonotonicNow() < end; ++i) {
    SendOrder order;
    order.transfer.bytes[0] = order.request.bytes[0] = i;
    status = (*sender)->Order(order);
    for (int poll = 0; poll < 50; ++poll) {
      agent->Poll(&events);
      (*channel)->WaitForActivity(absl::Milliseconds(2));
    }
  }
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
}

}  // namespace
}  // namespace sluice::bench
