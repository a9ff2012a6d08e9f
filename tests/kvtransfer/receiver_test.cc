// Every transition of the receiving machine, one story a test.
#include "kvtransfer/handoff/receiver.h"

#include <functional>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sluice::handoff {
namespace {

using State = Receiver::State;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr Incarnation kPrefill{7};
constexpr Incarnation kStranger{8};

class ReceiverTest : public ::testing::Test {
 protected:
  // Tokens [64, 300): cells 64..127, 128..191, 192..255 and a partial one.
  ReceiverTest() { Reset(); }
  void Reset() {
    now_ = absl::UnixEpoch();
    bind_.attempt = Attempt(2);
    bind_.begin_token = 64;
    bind_.end_token = 300;
    bind_.block_tokens = 64;
    bind_.block_bytes = 100;
    bind_.fingerprint = std::string(1, 'f');
    receiver_.emplace(ReceiverOptions{absl::Seconds(5), 1 << 20}, bind_, now_);
  }

  std::vector<std::string> Do(const Receiver::Event& event) {
    actions_.clear();
    accepted_ = receiver_->Step(event, now_, &actions_);
    std::vector<std::string> names;
    for (const Receiver::Action& action : actions_) {
      if (const auto* control = std::get_if<Receiver::SendControl>(&action)) {
        const auto* nack = std::get_if<Nack>(&control->body);
        names.push_back(nack ? absl::StrCat("Nack ", NackCodeName(nack->code))
                             : BodyName(control->body));
      } else if (const auto* take = std::get_if<Receiver::TakePayload>(&action)) {
        names.push_back(absl::StrCat("Take ", take->first_cell, "+", take->num_cells));
      } else if (const auto* freed = std::get_if<Receiver::Freed>(&action)) {
        names.push_back(absl::StrCat("Freed ", absl::StatusCodeToString(freed->status.code()), " ",
                                     freed->verified_tokens));
      } else if (const auto* aborted = std::get_if<Receiver::Aborted>(&action)) {
        names.push_back(absl::StrCat("Aborted ", aborted->verified_tokens));
      } else if (std::holds_alternative<Receiver::SendAck>(action)) {
        names.push_back("Ack");
      } else if (std::holds_alternative<Receiver::Delivered>(action)) {
        names.push_back("Delivered");
      } else {
        names.push_back("ClosePeer");
      }
    }
    return names;
  }
  std::vector<std::string> Hear(Body body, Incarnation from = kPrefill, uint64_t payload = 0) {
    return Do(Receiver::Message{from, std::move(body), payload});
  }
  static Offer OfferOf(uint32_t seq, uint32_t begin, uint32_t end) {
    return {seq, begin, end, (end - begin + 63) / 64 * 100, 1000 + seq};
  }
  std::vector<std::string> Offered(uint32_t seq, uint32_t begin, uint32_t end) {
    Offer offer = OfferOf(seq, begin, end);
    return Hear(offer, kPrefill, offer.payload_bytes);
  }
  std::vector<std::string> Arrived(uint32_t seq) {
    return Do(Receiver::ReceiveDone{seq, absl::OkStatus(), 1000 + seq});
  }
  std::vector<std::string> Tick(absl::Duration after) {
    now_ += after;
    return Do(Receiver::Tick{});
  }
  static Final FinalOf(uint32_t num_offers) { return {num_offers, 300, {42, -1, {}}}; }

  absl::Time now_;
  Bind bind_;
  std::optional<Receiver> receiver_;
  std::vector<Receiver::Action> actions_;
  bool accepted_ = false;
};

TEST_F(ReceiverTest, DeliversTheWholeStory) {
  EXPECT_EQ(receiver_->state(), State::kReserved);
  EXPECT_THAT(Hear(bind_), ElementsAre("Ack"));
  EXPECT_EQ(receiver_->state(), State::kBound);
  EXPECT_THAT(Offered(0, 64, 192), ElementsAre("Take 0+2"));
  EXPECT_EQ(receiver_->state(), State::kReceiving);
  EXPECT_THAT(Offered(1, 192, 300), ElementsAre("Take 2+2"));
  EXPECT_THAT(Arrived(1), ElementsAre("Ack"));
  EXPECT_EQ(receiver_->MakeAck().cumulative, 0u);
  EXPECT_EQ(receiver_->MakeAck().bitmap, "\x02");
  EXPECT_THAT(Arrived(0), ElementsAre("Ack"));
  EXPECT_EQ(receiver_->state(), State::kVerified);
  EXPECT_EQ(receiver_->MakeAck().cumulative, 2u);
  EXPECT_THAT(Hear(FinalOf(2)), ElementsAre("Ack", "Commit", "Delivered", "Freed OK 300"));
  EXPECT_EQ(std::get<Receiver::Delivered>(actions_[2]).first.token, 42);
  EXPECT_EQ(receiver_->state(), State::kClosed);
  EXPECT_EQ(receiver_->verified_bytes(), 400u);
}

TEST_F(ReceiverTest, FinalMayComeFirst) {
  Hear(bind_);
  EXPECT_THAT(Hear(FinalOf(1)), ElementsAre("Ack"));
  EXPECT_THAT(Hear(FinalOf(1)), ElementsAre("Ack"));  // repeated until we commit
  Offered(0, 64, 300);
  EXPECT_THAT(Arrived(0), ElementsAre("Ack", "Commit", "Delivered", "Freed OK 300"));
}

TEST_F(ReceiverTest, DuplicatesAreIdempotent) {
  Hear(bind_);
  EXPECT_THAT(Hear(bind_), ElementsAre("Ack"));
  Offered(0, 64, 128);
  EXPECT_THAT(Offered(0, 64, 128), IsEmpty());  // dropped: the first one is being received
  EXPECT_TRUE(accepted_);
  Arrived(0);
  EXPECT_THAT(Offered(0, 64, 128), ElementsAre("Ack"));  // dropped: its Ack was lost
  EXPECT_THAT(Arrived(0), IsEmpty());
  EXPECT_FALSE(accepted_);
  EXPECT_EQ(receiver_->verified_bytes(), 100u);
}

TEST_F(ReceiverTest, CompletionIsCoverageNotACount) {
  Hear(bind_);
  Offered(0, 64, 128);
  Arrived(0);
  for (int i = 0; i < 5; ++i) Offered(0, 64, 128);
  EXPECT_THAT(Hear(FinalOf(1)), ElementsAre("Ack"));
  EXPECT_NE(receiver_->state(), State::kClosed);
}

TEST_F(ReceiverTest, ContradictionsEndTheTransfer) {
  struct Case {
    std::string what;
    Offer offer;
    uint64_t payload_bytes;
    std::string answer;
  };
  Offer other_sum = OfferOf(0, 64, 128);
  other_sum.checksum = 5;
  Offer empty = OfferOf(1, 128, 192);
  empty.payload_bytes = 0;
  const Case cases[] = {
      {"same seq, other checksum", other_sum, 100, "Nack CONFLICT"},
      {"same seq, other range", OfferOf(0, 128, 192), 100, "Nack CONFLICT"},
      {"tokens offered twice", OfferOf(1, 64, 192), 200, "Nack CONFLICT"},
      {"before the reservation", OfferOf(1, 0, 64), 100, "Nack LAYOUT"},
      {"beyond it", OfferOf(1, 256, 320), 100, "Nack LAYOUT"},
      {"not at a block", OfferOf(1, 130, 192), 100, "Nack LAYOUT"},
      {"not to a block", OfferOf(1, 128, 190), 100, "Nack LAYOUT"},
      {"no tokens", OfferOf(1, 128, 128), 0, "Nack LAYOUT"},
      {"seq out of range", OfferOf(4, 128, 192), 100, "Nack LAYOUT"},
      {"payload of another size", OfferOf(1, 128, 192), 99, "Nack LAYOUT"},
      {"no payload", empty, 0, "Nack LAYOUT"},
  };
  for (const Case& c : cases) {
    Reset();
    Hear(bind_);
    Offered(0, 64, 128);
    Arrived(0);
    EXPECT_THAT(Hear(c.offer, kPrefill, c.payload_bytes),
                ElementsAre(c.answer, "Freed FAILED_PRECONDITION 128"))
        << c.what;
    EXPECT_FALSE(accepted_) << c.what;
  }
}

TEST_F(ReceiverTest, FinalsMustFit) {
  for (const Final& final : {Final{2, 299, {}}, Final{0, 300, {}}, Final{9, 300, {}}}) {
    Reset();
    Hear(bind_);
    EXPECT_THAT(Hear(final), ElementsAre("Nack LAYOUT", "Freed FAILED_PRECONDITION 64"));
  }
  Reset();
  Hear(bind_);
  Hear(FinalOf(1));
  EXPECT_THAT(Hear(FinalOf(2)), ElementsAre("Nack CONFLICT", "Freed FAILED_PRECONDITION 64"));
  Reset();
  Hear(bind_);
  Offered(0, 64, 300);
  Arrived(0);
  EXPECT_THAT(Hear(FinalOf(2)),
              ElementsAre("Ack", "Nack CONFLICT", "Freed FAILED_PRECONDITION 300"));
}

TEST_F(ReceiverTest, OtherLivesAreRefused) {
  EXPECT_THAT(Offered(0, 64, 128), ElementsAre("Nack STALE"));  // before Bind
  Hear(bind_);
  EXPECT_THAT(Hear(bind_, kStranger), ElementsAre("Nack STALE"));
  EXPECT_THAT(Hear(OfferOf(0, 64, 128), kStranger, 100), ElementsAre("Nack STALE"));
  EXPECT_THAT(Hear(Cancel{Side::kReceiver}, kStranger), ElementsAre("Nack STALE"));
  EXPECT_FALSE(accepted_);
  EXPECT_TRUE(std::get<Receiver::SendControl>(actions_[0]).to_origin);
  EXPECT_EQ(receiver_->state(), State::kBound);
}

TEST_F(ReceiverTest, BindMustMatch) {
  Bind stale = bind_;
  stale.attempt = Attempt(1);
  EXPECT_THAT(Hear(stale), ElementsAre("Nack STALE"));
  EXPECT_EQ(receiver_->state(), State::kReserved);
  stale = bind_;
  stale.request.bytes[3] = 1;
  EXPECT_THAT(Hear(stale), ElementsAre("Nack STALE"));
  for (int field = 0; field < 5; ++field) {
    Reset();
    Bind other = bind_;
    if (field == 0) other.fingerprint.push_back('g');
    if (field == 1) other.begin_token = 0;
    if (field == 2) other.end_token = 301;
    if (field == 3) other.block_tokens = 32;
    if (field == 4) other.block_bytes = 101;
    EXPECT_THAT(Hear(other), ElementsAre("Nack LAYOUT", "Freed FAILED_PRECONDITION 64")) << field;
  }
}

TEST_F(ReceiverTest, DamagedPayloadIsSentOnceMoreThenGivenUp) {
  Hear(bind_);
  Offered(0, 64, 128);
  EXPECT_THAT(Do(Receiver::ReceiveDone{0, absl::OkStatus(), 666}), ElementsAre("Nack BAD_SUM"));
  EXPECT_EQ(receiver_->checksum_failures(), 1u);
  EXPECT_THAT(Offered(0, 64, 128), ElementsAre("Take 0+1"));
  EXPECT_THAT(Do(Receiver::ReceiveDone{0, absl::OkStatus(), 666}),
              ElementsAre("Cancel", "Freed DATA_LOSS 64"));
  EXPECT_EQ(receiver_->checksum_failures(), 2u);
}

TEST_F(ReceiverTest, FailedReceiveWaitsForTheResend) {
  Hear(bind_);
  Offered(0, 64, 128);
  EXPECT_THAT(Do(Receiver::ReceiveDone{0, absl::UnavailableError("lost")}), IsEmpty());
  EXPECT_THAT(Offered(0, 64, 128), ElementsAre("Take 0+1"));
  EXPECT_THAT(Arrived(0), ElementsAre("Ack"));
}

TEST_F(ReceiverTest, NothingFreesMemoryUnderAPendingReceive) {
  struct Case {
    std::string what;
    std::function<std::vector<std::string>()> abort;
    std::vector<std::string> at_once;
    std::vector<std::string> at_end;
  };
  const Case cases[] = {
      {"owner",
       [this] { return Do(Receiver::Abort{absl::CancelledError("")}); },
       {"Cancel", "Aborted 128"},
       {"Freed CANCELLED 128"}},
      {"peer dead",
       [this] { return Do(Receiver::PeerDead{absl::UnavailableError("")}); },
       {"Aborted 128"},
       {"Freed UNAVAILABLE 128"}},
      {"sender",
       [this] { return Hear(Cancel{Side::kReceiver}); },
       {"Aborted 128"},
       {"CancelAck", "Freed CANCELLED 128"}},
      {"lease",
       [this] { return Tick(absl::Seconds(5)); },
       {"Cancel", "Aborted 128"},
       {"Freed DEADLINE_EXCEEDED 128"}},
      {"contradiction",
       [this] { return Offered(1, 192, 256); },
       {"Nack CONFLICT", "Aborted 128"},
       {"Freed FAILED_PRECONDITION 128"}},
  };
  for (const Case& c : cases) {
    Reset();
    Hear(bind_);
    Offered(0, 64, 128);
    Arrived(0);
    Offered(1, 128, 192);
    EXPECT_EQ(c.abort(), c.at_once) << c.what;
    EXPECT_EQ(receiver_->state(), State::kAborting) << c.what;
    EXPECT_THAT(Tick(absl::Seconds(1)), IsEmpty()) << c.what;
    // Even a whole and correct payload does not count any more.
    EXPECT_EQ(Arrived(1), c.at_end) << c.what;
    EXPECT_EQ(receiver_->state(), State::kFreed) << c.what;
  }
}

TEST_F(ReceiverTest, AHangingReceiveCostsTheEndpointAndNothingElse) {
  Hear(bind_);
  Offered(0, 64, 128);
  Do(Receiver::Abort{absl::CancelledError("")});
  EXPECT_THAT(Tick(absl::Seconds(5)), ElementsAre("ClosePeer"));
  EXPECT_EQ(receiver_->state(), State::kAborting);
  EXPECT_THAT(Do(Receiver::PeerDead{absl::UnavailableError("")}), IsEmpty());
  EXPECT_THAT(Do(Receiver::ReceiveDone{0, absl::CancelledError("")}),
              ElementsAre("Freed CANCELLED 64"));
}

TEST_F(ReceiverTest, WhileAbortingEverythingIsRefusedAndCancelsAreAnsweredAtTheEnd) {
  Hear(bind_);
  Offered(0, 64, 128);
  Do(Receiver::Abort{absl::CancelledError("")});
  EXPECT_THAT(Hear(bind_), ElementsAre("Nack EXPIRED"));
  EXPECT_THAT(Offered(1, 128, 192), ElementsAre("Nack EXPIRED"));
  EXPECT_THAT(Hear(FinalOf(1)), ElementsAre("Nack EXPIRED"));
  // CancelAck means "no receive of mine is pending": not yet.
  EXPECT_THAT(Hear(Cancel{Side::kReceiver}), IsEmpty());
  EXPECT_THAT(Arrived(0), ElementsAre("CancelAck", "Freed CANCELLED 64"));
}

TEST_F(ReceiverTest, LeaseIsRenewedByTheSenderAndNeedsProgress) {
  EXPECT_THAT(Tick(absl::Seconds(4)), IsEmpty());
  Hear(bind_);
  EXPECT_THAT(Tick(absl::Seconds(4)), IsEmpty());
  Offered(0, 64, 128);
  EXPECT_THAT(Tick(absl::Seconds(4)), IsEmpty());
  Hear(bind_);  // keep-alives go on, the receive does not
  EXPECT_EQ(receiver_->NextDeadline(), now_ + absl::Seconds(1));
  EXPECT_THAT(Tick(absl::Seconds(1)), ElementsAre("Cancel", "Aborted 64"));
  EXPECT_EQ(receiver_->state(), State::kAborting);
}

TEST_F(ReceiverTest, ReservationWithoutBindEnds) {
  EXPECT_THAT(Tick(absl::Seconds(5)), ElementsAre("Freed DEADLINE_EXCEEDED 64"));
}

TEST_F(ReceiverTest, VerifiedPrefixStopsAtTheFirstHole) {
  Hear(bind_);
  Offered(0, 64, 128);
  Offered(1, 128, 192);
  Offered(2, 192, 300);
  Arrived(0);
  Arrived(2);
  Do(Receiver::Abort{absl::CancelledError("")});
  EXPECT_THAT(Do(Receiver::ReceiveDone{1, absl::CancelledError("")}),
              ElementsAre("Freed CANCELLED 128"));
}

}  // namespace
}  // namespace sluice::handoff
