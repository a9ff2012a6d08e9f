#include "services/rpc/fleet_codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "common/random.h"
#include "sluice/v1/fleet.pb.h"

namespace sluice::rpc {
namespace {

SequenceAttempt MakeSequence() {
  SequenceAttempt sequence;
  sequence.request = RandomId128<RequestId>();
  sequence.attempt = Attempt(3);
  sequence.tokens = {5, 6, 7, 8};
  sequence.num_output_tokens = 1;
  sequence.tenant_salt = std::string("a\0b", 3);
  sequence.sampling.temperature = 0.5F;
  sequence.sampling.top_p = 0.9F;
  sequence.sampling.top_k = 40;
  sequence.sampling.min_p = 0.1F;
  sequence.sampling.seed = 0xFFFFFFFFFFFFFFFF;
  sequence.sampling.presence_penalty = -1;
  sequence.sampling.frequency_penalty = 1;
  sequence.sampling.repetition_penalty = 1.5F;
  sequence.sampling.logit_bias = {{2, -100.0F}, {9, 3.0F}};
  sequence.sampling.stop_token_ids = {1, 2};
  sequence.sampling.min_tokens = 2;
  sequence.sampling.max_tokens = 64;
  sequence.sampling.num_top_logprobs = 4;
  sequence.time_left = absl::Milliseconds(1500);
  return sequence;
}

GrantTerms MakeGrant(const SequenceAttempt& sequence) {
  return {sequence.request,    sequence.attempt, RandomId128<TransferId>(), Incarnation(77),
          /*cached_tokens=*/0, absl::Seconds(5)};
}

void ExpectEqual(const SequenceAttempt& a, const SequenceAttempt& b) {
  EXPECT_EQ(a.request, b.request);
  EXPECT_EQ(a.attempt, b.attempt);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.num_output_tokens, b.num_output_tokens);
  EXPECT_EQ(a.tenant_salt, b.tenant_salt);
  EXPECT_EQ(a.time_left, b.time_left);
  EXPECT_EQ(a.sampling.temperature, b.sampling.temperature);
  EXPECT_EQ(a.sampling.top_p, b.sampling.top_p);
  EXPECT_EQ(a.sampling.top_k, b.sampling.top_k);
  EXPECT_EQ(a.sampling.min_p, b.sampling.min_p);
  EXPECT_EQ(a.sampling.seed, b.sampling.seed);
  EXPECT_EQ(a.sampling.presence_penalty, b.sampling.presence_penalty);
  EXPECT_EQ(a.sampling.frequency_penalty, b.sampling.frequency_penalty);
  EXPECT_EQ(a.sampling.repetition_penalty, b.sampling.repetition_penalty);
  EXPECT_EQ(a.sampling.logit_bias, b.sampling.logit_bias);
  EXPECT_EQ(a.sampling.stop_token_ids, b.sampling.stop_token_ids);
  EXPECT_EQ(a.sampling.min_tokens, b.sampling.min_tokens);
  EXPECT_EQ(a.sampling.max_tokens, b.sampling.max_tokens);
  EXPECT_EQ(a.sampling.num_top_logprobs, b.sampling.num_top_logprobs);
}

TEST(FleetCodec, ReserveRoundTrip) {
  const SequenceAttempt sequence = MakeSequence();
  v1::Reserve proto;
  Encode(sequence, &proto);
  const absl::StatusOr<SequenceAttempt> decoded = Decode(proto);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  ExpectEqual(*decoded, sequence);
}

TEST(FleetCodec, TopLogprobsWithinTheirBound) {
  for (const int32_t count : {-1, 0, kMaxNumTopLogprobs}) {
    SequenceAttempt sequence = MakeSequence();
    sequence.sampling.num_top_logprobs = count;
    v1::Run proto;
    Encode(sequence, &proto);
    const absl::StatusOr<SequenceAttempt> decoded = Decode(proto);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(decoded->sampling.num_top_logprobs, count);
  }
}

TEST(FleetCodec, NoDeadlineStaysNone) {
  SequenceAttempt sequence = MakeSequence();
  sequence.time_left.reset();
  v1::Run proto;
  Encode(sequence, &proto);
  EXPECT_FALSE(Decode(proto)->time_left.has_value());
}

TEST(FleetCodec, PrefillRoundTrip) {
  PrefillOrder order;
  order.sequence = MakeSequence();
  order.grant = MakeGrant(order.sequence);
  order.kv_address = std::string("\0\xFF\x01", 3);
  order.decode_worker_id = "decode-0";
  order.fingerprint = std::string(32, '\x80');
  v1::Prefill proto;
  Encode(order, &proto);
  const absl::StatusOr<PrefillOrder> decoded = Decode(proto);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  ExpectEqual(decoded->sequence, order.sequence);
  EXPECT_EQ(decoded->grant.transfer, order.grant.transfer);
  EXPECT_EQ(decoded->grant.incarnation, order.grant.incarnation);
  EXPECT_EQ(decoded->grant.lease, order.grant.lease);
  EXPECT_EQ(decoded->kv_address, order.kv_address);
  EXPECT_EQ(decoded->decode_worker_id, order.decode_worker_id);
  EXPECT_EQ(decoded->fingerprint, order.fingerprint);
}

TEST(FleetCodec, GrantRoundTrip) {
  GrantTerms grant = MakeGrant(MakeSequence());
  grant.cached_tokens = 128;
  grant.kv_address = std::string("\0\xFF\x01", 3);
  v1::Grant proto;
  Encode(grant, &proto);
  const absl::StatusOr<GrantTerms> decoded = Decode(proto);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->transfer, grant.transfer);
  EXPECT_EQ(decoded->cached_tokens, 128);
  EXPECT_EQ(decoded->kv_address, grant.kv_address);
}

TEST(FleetCodec, TokenRoundTrip) {
  const SequenceAttempt sequence = MakeSequence();
  OutputTokenEvent event{
      sequence.request, sequence.attempt, 7, {42, -0.25F, {{42, -0.25F}, {3, -2}}}};
  event.stages = StageDurations{absl::Milliseconds(3), absl::Microseconds(1)};
  event.cached_tokens = 128;
  v1::OutputToken proto;
  Encode(event, &proto);
  const absl::StatusOr<OutputTokenEvent> decoded = Decode(proto);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->request, event.request);
  EXPECT_EQ(decoded->index, 7);
  EXPECT_EQ(decoded->token.token, 42);
  EXPECT_EQ(decoded->token.logprob, -0.25F);
  ASSERT_EQ(decoded->token.top.size(), 2U);
  EXPECT_EQ(decoded->token.top[1].token, 3);
  EXPECT_EQ(decoded->stages->queue, absl::Milliseconds(3));
  EXPECT_EQ(decoded->stages->compute, absl::Microseconds(1));
  EXPECT_EQ(decoded->cached_tokens, 128);
}

TEST(FleetCodec, EndedRoundTripForEveryReason) {
  const SequenceAttempt sequence = MakeSequence();
  for (const RequestEndReason reason :
       {RequestEndReason::kStop, RequestEndReason::kLength, RequestEndReason::kCancelled,
        RequestEndReason::kHandedOver, RequestEndReason::kFailed}) {
    RequestEndedEvent event{sequence.request, sequence.attempt, reason};
    if (reason == RequestEndReason::kFailed) {
      event.status = absl::DataLossError("checksum");
      event.stage = "kv_transfer";
    }
    v1::RequestEnded proto;
    Encode(event, &proto);
    const absl::StatusOr<RequestEndedEvent> decoded = Decode(proto);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(decoded->reason, reason);
    EXPECT_EQ(decoded->status, event.status);
    EXPECT_EQ(decoded->stage, event.stage);
  }
}

TEST(FleetCodec, FailedWithoutStatusIsStillAnError) {
  v1::RequestEnded proto;
  proto.set_request_id(std::string(16, 'x'));
  proto.set_attempt(1);
  proto.set_reason(v1::RequestEnded::REASON_FAILED);
  EXPECT_FALSE(Decode(proto)->status.ok());
}

// Each row damages one field; decoding must name it.
struct Damage {
  const char* field;
  void (*apply)(v1::Prefill*);
};
class FleetCodecRefusal : public ::testing::TestWithParam<Damage> {};

TEST_P(FleetCodecRefusal, NamesTheField) {
  PrefillOrder order;
  order.sequence = MakeSequence();
  order.grant = MakeGrant(order.sequence);
  order.kv_address = "x";
  v1::Prefill proto;
  Encode(order, &proto);
  ASSERT_TRUE(Decode(proto).ok());
  GetParam().apply(&proto);
  const absl::Status status = Decode(proto).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find(GetParam().field), std::string::npos) << status;
}

INSTANTIATE_TEST_SUITE_P(
    All, FleetCodecRefusal,
    ::testing::Values(
        Damage{"request_id", [](v1::Prefill* p) { p->set_request_id("short"); }},
        Damage{"attempt", [](v1::Prefill* p) { p->set_attempt(0); }},
        Damage{"tokens.ids", [](v1::Prefill* p) { p->mutable_tokens()->clear_ids(); }},
        Damage{"num_output_tokens",
               [](v1::Prefill* p) { p->mutable_tokens()->set_num_output_tokens(4); }},
        Damage{"num_output_tokens",
               [](v1::Prefill* p) { p->mutable_tokens()->set_num_output_tokens(-1); }},
        Damage{"temperature",
               [](v1::Prefill* p) {
                 p->mutable_sampling()->set_temperature(std::numeric_limits<float>::quiet_NaN());
               }},
        Damage{"top_p", [](v1::Prefill* p) { p->mutable_sampling()->set_top_p(0); }},
        Damage{"top_k", [](v1::Prefill* p) { p->mutable_sampling()->set_top_k(-1); }},
        Damage{"repetition_penalty",
               [](v1::Prefill* p) { p->mutable_sampling()->set_repetition_penalty(1.2e-38F); }},
        Damage{
            "logit_bias",
            [](v1::Prefill* p) { (*p->mutable_sampling()->mutable_logit_bias())[1] = INFINITY; }},
        Damage{"max_tokens", [](v1::Prefill* p) { p->mutable_sampling()->set_max_tokens(1); }},
        Damage{"num_top_logprobs",
               [](v1::Prefill* p) { p->mutable_sampling()->set_num_top_logprobs(-2); }},
        Damage{"num_top_logprobs",
               [](v1::Prefill* p) { p->mutable_sampling()->set_num_top_logprobs(257); }},
        Damage{"transfer_id", [](v1::Prefill* p) { p->mutable_grant()->clear_transfer_id(); }},
        Damage{"cached_tokens", [](v1::Prefill* p) { p->mutable_grant()->set_cached_tokens(63); }},
        Damage{"cached_tokens", [](v1::Prefill* p) { p->mutable_grant()->set_cached_tokens(64); }},
        Damage{"grant", [](v1::Prefill* p) { p->mutable_grant()->set_attempt(4); }},
        Damage{"kv_address", [](v1::Prefill* p) { p->clear_kv_address(); }}));

TEST(FleetCodec, Durations) {
  google::protobuf::Duration proto;
  for (const absl::Duration duration :
       {absl::ZeroDuration(), absl::Nanoseconds(1), absl::Milliseconds(1234), absl::Hours(100)}) {
    Encode(duration, &proto);
    EXPECT_EQ(Decode(proto), duration);
  }
  Encode(absl::InfiniteDuration(), &proto);
  EXPECT_GT(Decode(proto), absl::Hours(24 * 365 * 1000));
  Encode(-absl::Seconds(2), &proto);
  EXPECT_EQ(Decode(proto), absl::ZeroDuration());
}

TEST(FleetCodec, UnknownStatusCodesBecomeUnknown) {
  EXPECT_EQ(StatusFromWire(0, "x"), absl::OkStatus());
  EXPECT_EQ(StatusFromWire(8, "x"), absl::ResourceExhaustedError("x"));
  EXPECT_EQ(StatusFromWire(999, "x").code(), absl::StatusCode::kUnknown);
  EXPECT_EQ(StatusFromWire(-1, "x").code(), absl::StatusCode::kUnknown);
}

}  // namespace
}  // namespace sluice::rpc
