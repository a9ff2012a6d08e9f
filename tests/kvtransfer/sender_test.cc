// Every transition of the sending machine, one story a test.
#include "kvtransfer/handoff/sender.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sluice::handoff {
namespace {

using State = Sender::State;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

const absl::Time kStart = absl::UnixEpoch();

class SenderTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kChunk = 100;
  SenderTest() {
    options_.lease = absl::Seconds(5);
    options_.resend_interval = absl::Milliseconds(300);
    options_.window_bytes = 250;
    Bind bind;
    bind.end_token = 256;
    bind.block_tokens = 64;
    bind.block_bytes = kChunk;
    sender_.emplace(options_, bind, now_);
    Do(Sender::Start{});
  }

  // Steps and returns the names of what it asks for.
  std::vector<std::string> Do(const Sender::Event& event) {
    actions_.clear();
    accepted_ = sender_->Step(event, now_, &actions_);
    std::vector<std::string> names;
    for (const Sender::Action& action : actions_) {
      if (const auto* control = std::get_if<Sender::SendControl>(&action)) {
        names.push_back(BodyName(control->body));
      } else if (const auto* ended = std::get_if<Sender::Ended>(&action)) {
        names.push_back("Ended " + absl::StatusCodeToString(ended->status.code()));
      } else {
        names.push_back("ClosePeer");
      }
    }
    return names;
  }
  std::vector<std::string> TickAfter(absl::Duration duration) {
    now_ += duration;
    return Do(Sender::Tick{});
  }
  void Add(int n = 1) {
    for (int i = 0; i < n; ++i) {
      uint32_t seq = sender_->num_offers();
      Do(Sender::Add{seq * 64, seq * 64 + 64, kChunk});
      Do(Sender::Checksummed{seq, 1000 + seq});
    }
  }
  // Seqs that can be sent now; they stay pending.
  std::vector<uint32_t> TakeOffers() {
    std::vector<uint32_t> seqs;
    while (std::optional<Offer> offer = sender_->NextOffer(now_)) seqs.push_back(offer->seq);
    return seqs;
  }
  void SendsEnd(const std::vector<uint32_t>& seqs, absl::Status status = absl::OkStatus()) {
    for (uint32_t seq : seqs) Do(Sender::SendDone{seq, status});
  }
  static Ack AckOf(uint32_t cumulative, std::string bitmap = "") {
    return Ack{cumulative, std::move(bitmap), 1 << 20, 5000};
  }
  void BindAndFill() {  // FINAL_SENT with four acknowledged chunks
    Do(AckOf(0));
    Add(4);
    Do(Sender::Finish{});
    for (int i = 0; i < 2; ++i) {
      std::vector<uint32_t> seqs = TakeOffers();
      SendsEnd(seqs);
      Do(AckOf(seqs.back() + 1));
    }
    ASSERT_EQ(sender_->state(), State::kFinalSent);
  }

  SenderOptions options_;
  absl::Time now_ = kStart;
  std::optional<Sender> sender_;
  std::vector<Sender::Action> actions_;
  bool accepted_ = false;
};

TEST_F(SenderTest, BindsFirstAndAgainUntilAnswered) {
  Add();
  EXPECT_THAT(TakeOffers(), IsEmpty());  // nothing leaves before the receiver is known to listen
  EXPECT_THAT(TickAfter(absl::Milliseconds(299)), IsEmpty());
  EXPECT_THAT(TickAfter(absl::Milliseconds(1)), ElementsAre("Bind"));
  EXPECT_THAT(TickAfter(absl::Milliseconds(300)), ElementsAre("Bind"));
  EXPECT_THAT(Do(AckOf(0)), IsEmpty());
  EXPECT_EQ(sender_->state(), State::kSending);
  EXPECT_THAT(TakeOffers(), ElementsAre(0));
}

TEST_F(SenderTest, CommitsTheWholeStory) {
  Add(2);
  EXPECT_THAT(Do(AckOf(0)), IsEmpty());
  EXPECT_THAT(TakeOffers(), ElementsAre(0, 1));
  EXPECT_THAT(Do(Sender::Finish{{42, -1, {}}}), ElementsAre("Final"));
  const Final& final = std::get<Final>(std::get<Sender::SendControl>(actions_[0]).body);
  EXPECT_EQ(final.num_offers, 2u);
  EXPECT_EQ(final.end_token, 256u);
  EXPECT_EQ(final.first.token, 42);
  Do(AckOf(2));
  EXPECT_EQ(sender_->acked_bytes(), 200u);
  SendsEnd({0});
  // Committed, but our own send of seq 1 still reads the source.
  EXPECT_THAT(Do(Commit{}), IsEmpty());
  EXPECT_EQ(sender_->state(), State::kCommitted);
  EXPECT_THAT(Do(Sender::SendDone{1, absl::OkStatus()}), ElementsAre("Ended OK"));
  EXPECT_EQ(sender_->NextDeadline(), absl::InfiniteFuture());
  Do(Commit{});
  EXPECT_FALSE(accepted_);
}

TEST_F(SenderTest, FinishedBeforeBoundSendsFinalAfterTheFirstAck) {
  Add();
  EXPECT_THAT(Do(Sender::Finish{}), IsEmpty());
  EXPECT_THAT(Do(AckOf(0)), ElementsAre("Final"));
  EXPECT_EQ(sender_->state(), State::kFinalSent);
}

TEST_F(SenderTest, NothingIsSentBeforeItsChecksum) {
  Do(AckOf(0));
  Do(Sender::Add{0, 64, kChunk});
  EXPECT_THAT(TakeOffers(), IsEmpty());
  Do(Sender::Checksummed{0, 77});
  std::optional<Offer> offer = sender_->NextOffer(now_);
  ASSERT_TRUE(offer.has_value());
  EXPECT_EQ(offer->checksum, 77u);
}

TEST_F(SenderTest, StaysInsideBothWindows) {
  Do(AckOf(0));
  Add(4);
  EXPECT_THAT(TakeOffers(), ElementsAre(0, 1));  // 250 bytes of ours
  Do(AckOf(1));
  EXPECT_THAT(TakeOffers(), ElementsAre(2));
  Ack narrow = AckOf(3);
  narrow.window_bytes = 10;  // smaller than a chunk: one at a time
  Do(narrow);
  EXPECT_THAT(TakeOffers(), ElementsAre(3));
  Ack closed = AckOf(4);
  closed.window_bytes = 0;
  Do(closed);
  Add();
  EXPECT_THAT(TakeOffers(), IsEmpty());
}

TEST_F(SenderTest, ResendsWhatWasSentAndNotAcknowledged) {
  Do(AckOf(0));
  Add(2);
  EXPECT_THAT(TakeOffers(), ElementsAre(0, 1));
  SendsEnd({0}, absl::UnavailableError("lost"));
  Do(AckOf(0, "\x02"));  // seq 1 arrived; its send is still pending
  now_ += absl::Milliseconds(299);
  EXPECT_THAT(TakeOffers(), IsEmpty());
  EXPECT_EQ(sender_->NextDeadline(), now_ + absl::Milliseconds(1));
  now_ += absl::Milliseconds(1);
  EXPECT_THAT(TakeOffers(), ElementsAre(0));
  now_ += absl::Seconds(1);
  EXPECT_THAT(TakeOffers(), IsEmpty());  // pending: not sent a second time
  SendsEnd({1});
  now_ += absl::Seconds(1);
  EXPECT_THAT(TakeOffers(), IsEmpty());  // acknowledged: not sent again
}

TEST_F(SenderTest, ResendsAtOnceOnBadSum) {
  Do(AckOf(0));
  Add();
  TakeOffers();
  Do(Nack{NackCode::kBadSum, 0});
  EXPECT_THAT(TakeOffers(), IsEmpty());  // the channel still holds the first one
  SendsEnd({0});
  Do(Nack{NackCode::kBadSum, 0});
  EXPECT_THAT(TakeOffers(), ElementsAre(0));
  Do(Nack{NackCode::kBadSum, 5});
  EXPECT_FALSE(accepted_);  // never sent
}

TEST_F(SenderTest, RepeatsFinalUntilCommit) {
  BindAndFill();
  EXPECT_THAT(TickAfter(absl::Milliseconds(300)), ElementsAre("Final"));
  Do(AckOf(4));
  EXPECT_THAT(TickAfter(absl::Milliseconds(300)), ElementsAre("Final"));
  EXPECT_THAT(Do(Commit{}), ElementsAre("Ended OK"));
}

TEST_F(SenderTest, BindIsTheKeepAliveWhileThePromptIsComputed) {
  Do(AckOf(0));
  EXPECT_THAT(TickAfter(absl::Seconds(1.25)), ElementsAre("Bind"));
  Do(AckOf(0));
  EXPECT_THAT(TickAfter(absl::Seconds(1.25)), ElementsAre("Bind"));
  Do(AckOf(0));
  now_ += absl::Seconds(4);
  Do(AckOf(0));  // renewed
  now_ += absl::Seconds(4);
  Do(Sender::Tick{});
  EXPECT_EQ(sender_->state(), State::kSending);
}

TEST_F(SenderTest, KeepsAShorterLeaseOfTheReceiverAlive) {
  Ack ack = AckOf(0);
  ack.lease_milliseconds = 1000;  // a fifth of ours
  Do(ack);
  EXPECT_EQ(sender_->NextDeadline(), now_ + absl::Milliseconds(250));
  for (int i = 0; i < 20; ++i) {
    EXPECT_THAT(TickAfter(absl::Milliseconds(250)), ElementsAre("Bind"));
    Do(ack);
  }
  EXPECT_EQ(sender_->state(), State::kSending);
}

TEST_F(SenderTest, ALongerLeaseOfTheReceiverDoesNotSlowTheKeepAlive) {
  Ack ack = AckOf(0);
  ack.lease_milliseconds = 60'000;
  Do(ack);
  EXPECT_THAT(TickAfter(absl::Seconds(1.25)), ElementsAre("Bind"));
}

TEST_F(SenderTest, NoReceiverSetsAFranticPace) {
  Ack ack = AckOf(0);
  ack.lease_milliseconds = 1;
  Do(ack);
  EXPECT_THAT(TickAfter(absl::Microseconds(900)), IsEmpty());
  Do(ack);
  EXPECT_THAT(TickAfter(absl::Microseconds(900)), IsEmpty());
}

TEST_F(SenderTest, SilenceForALeaseEndsIt) {
  Do(AckOf(0));
  Add();
  TakeOffers();
  SendsEnd({0});
  EXPECT_THAT(TickAfter(absl::Seconds(5)), ElementsAre("Cancel", "Ended DEADLINE_EXCEEDED"));
}

TEST_F(SenderTest, AnswersWithoutProgressEndItToo) {
  Do(AckOf(0));
  Add();
  TakeOffers();
  for (int i = 0; i < 4; ++i) {
    now_ += absl::Seconds(1);
    Do(AckOf(0));  // the receiver lives, the payload does not get through
    Do(Sender::Tick{});
    ASSERT_EQ(sender_->state(), State::kSending);
  }
  EXPECT_THAT(TickAfter(absl::Seconds(1)), ElementsAre("Cancel"));
  EXPECT_EQ(sender_->state(), State::kAborting);
}

TEST_F(SenderTest, TheReceiverSetsTheLease) {
  Ack ack = AckOf(0);
  ack.lease_milliseconds = 1000;
  Do(ack);
  TickAfter(absl::Milliseconds(999));
  EXPECT_EQ(sender_->state(), State::kSending);
  TickAfter(absl::Milliseconds(1));
  EXPECT_EQ(sender_->state(), State::kEnded);
}

TEST_F(SenderTest, CancelWaitsForItsAnswer) {
  Do(AckOf(0));
  Add();
  TakeOffers();
  SendsEnd({0});
  EXPECT_THAT(Do(Sender::Abort{absl::CancelledError("client left")}), ElementsAre("Cancel"));
  EXPECT_THAT(TickAfter(absl::Milliseconds(300)), ElementsAre("Cancel"));
  EXPECT_THAT(TakeOffers(), IsEmpty());
  EXPECT_THAT(Do(CancelAck{}), ElementsAre("Ended CANCELLED"));
}

TEST_F(SenderTest, CancelBeforeBoundNeedsNoAnswer) {
  Add();
  EXPECT_THAT(Do(Sender::Abort{absl::CancelledError("")}),
              ElementsAre("Cancel", "Ended CANCELLED"));
}

TEST_F(SenderTest, CancelWithoutAnswerEndsWithTheLease) {
  Do(AckOf(0));
  Do(Sender::Abort{absl::CancelledError("")});
  TickAfter(absl::Seconds(4));
  EXPECT_EQ(sender_->state(), State::kAborting);
  EXPECT_THAT(TickAfter(absl::Seconds(1)), ElementsAre("Ended CANCELLED"));
}

TEST_F(SenderTest, NoAnswerReleasesBlocksUnderAPendingSend) {
  struct Case {
    Sender::Event event;
    std::string end;
  };
  const Case cases[] = {
      {Nack{NackCode::kUnknown}, "Ended NOT_FOUND"},
      {Nack{NackCode::kStale}, "Ended ABORTED"},
      {Nack{NackCode::kExpired}, "Ended ABORTED"},
      {Nack{NackCode::kLayout}, "Ended FAILED_PRECONDITION"},
      {Nack{NackCode::kConflict}, "Ended INTERNAL"},
      {Sender::PeerDead{absl::UnavailableError("dead")}, "Ended UNAVAILABLE"},
      {Cancel{Side::kSender, absl::StatusCode::kDataLoss, "twice"}, "Ended DATA_LOSS"},
  };
  for (const Case& c : cases) {
    sender_.emplace(options_, Bind{}, now_);
    Do(Sender::Start{});
    Do(AckOf(0));
    Add();
    TakeOffers();
    Do(c.event);
    EXPECT_TRUE(accepted_);
    EXPECT_EQ(sender_->state(), State::kAborting) << c.end;
    EXPECT_THAT(Do(Sender::SendDone{0, absl::CancelledError("")}), ElementsAre(c.end));
  }
}

TEST_F(SenderTest, AHangingSendCostsTheEndpointAndNothingElse) {
  Do(AckOf(0));
  Add();
  TakeOffers();
  Do(Nack{NackCode::kExpired});
  EXPECT_THAT(TickAfter(absl::Seconds(4.9)), IsEmpty());
  EXPECT_THAT(TickAfter(absl::Seconds(0.1)), ElementsAre("ClosePeer"));
  EXPECT_EQ(sender_->state(), State::kAborting);
  EXPECT_THAT(Do(Sender::SendDone{0, absl::CancelledError("")}), ElementsAre("Ended ABORTED"));
}

TEST_F(SenderTest, AnswersTheReceiversCancel) {
  Do(AckOf(0));
  EXPECT_THAT(Do(Cancel{Side::kSender, absl::StatusCode::kCancelled, "gone"}),
              ElementsAre("CancelAck", "Ended CANCELLED"));
}

TEST_F(SenderTest, ACommitThatCrossesOurCancelIsAnAnswer) {
  BindAndFill();
  Do(Sender::Abort{absl::CancelledError("")});
  EXPECT_THAT(Do(Commit{}), ElementsAre("Ended CANCELLED"));
}

TEST_F(SenderTest, RefusesWhatCanNotBe) {
  Do(Commit{});
  EXPECT_FALSE(accepted_);  // nothing was offered
  Do(AckOf(1));
  EXPECT_FALSE(accepted_);  // nor sent
  EXPECT_EQ(sender_->state(), State::kQueued);
  Do(CancelAck{});
  EXPECT_FALSE(accepted_);
  Do(AckOf(0));
  Add();
  Do(Commit{});
  EXPECT_FALSE(accepted_);  // before Final
  Do(Sender::Finish{});
  Do(Sender::Finish{});
  EXPECT_FALSE(accepted_);
  Do(Sender::Add{64, 128, kChunk});
  EXPECT_FALSE(accepted_);
  Do(Sender::SendDone{0, absl::OkStatus()});
  EXPECT_FALSE(accepted_);  // was not pending
}

TEST_F(SenderTest, DuplicateAcksChangeNothing) {
  Do(AckOf(0));
  Add(4);
  TakeOffers();
  SendsEnd({0, 1});
  for (int i = 0; i < 3; ++i) Do(AckOf(1, "\xff"));
  EXPECT_EQ(sender_->acked_bytes(), 200u);
  Do(AckOf(0));  // an old one
  EXPECT_EQ(sender_->acked_bytes(), 200u);
  EXPECT_THAT(TakeOffers(), ElementsAre(2, 3));
}

}  // namespace
}  // namespace sluice::handoff
