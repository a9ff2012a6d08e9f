#include "services/worker_runtime/request_table.h"

#include <gtest/gtest.h>

#include "services/worker_runtime/handler_base.h"
#include "tests/support/fake_engine.h"

namespace sluice::worker {
namespace {

using testing::MakeKey;

RequestRecord Record(const SequenceKey& key, absl::Time deadline = absl::InfiniteFuture()) {
  RequestRecord record;
  record.key = key;
  record.deadline = deadline;
  return record;
}

TEST(RequestTable, TellsNewsFromDuplicatesAndStragglers) {
  RequestTable<RequestRecord> table;
  EXPECT_EQ(table.Classify(MakeKey(1, 2)), Arrival::kNew);
  table.Insert(Record(MakeKey(1, 2)));
  EXPECT_EQ(table.Classify(MakeKey(1, 2)), Arrival::kDuplicate);
  EXPECT_EQ(table.Classify(MakeKey(1, 1)), Arrival::kStale);
  EXPECT_EQ(table.Classify(MakeKey(1, 3)), Arrival::kNew);
  EXPECT_EQ(table.Classify(MakeKey(2, 1)), Arrival::kNew);
}

TEST(RequestTable, AnEndedAttemptNeverComesBack) {
  RequestTable<RequestRecord> table;
  table.Erase(table.Insert(Record(MakeKey(1, 2))));
  EXPECT_EQ(table.Find(MakeKey(1, 2)), nullptr);
  EXPECT_EQ(table.Classify(MakeKey(1, 2)), Arrival::kStale);
  EXPECT_EQ(table.Classify(MakeKey(1, 3)), Arrival::kNew);
}

TEST(RequestTable, OlderAttemptsMayLiveBesideTheNewest) {
  RequestTable<RequestRecord> table;
  RequestRecord& old = table.Insert(Record(MakeKey(1, 1)));
  table.Insert(Record(MakeKey(1, 2)));
  EXPECT_EQ(table.size(), 2);
  EXPECT_EQ(table.Classify(MakeKey(1, 1)), Arrival::kDuplicate);
  table.Erase(old);
  EXPECT_EQ(table.Classify(MakeKey(1, 1)), Arrival::kStale);
  EXPECT_NE(table.Find(MakeKey(1, 2)), nullptr);
}

TEST(RequestTable, DeadlinesComeOnceAndInOrder) {
  RequestTable<RequestRecord> table;
  const absl::Time start = absl::UnixEpoch();
  EXPECT_EQ(table.NextDeadline(), absl::InfiniteFuture());
  table.Insert(Record(MakeKey(1), start + absl::Seconds(2)));
  table.Insert(Record(MakeKey(2), start + absl::Seconds(1)));
  table.Insert(Record(MakeKey(3)));
  EXPECT_EQ(table.NextDeadline(), start + absl::Seconds(1));
  EXPECT_TRUE(table.Expired(start).empty());
  EXPECT_EQ(table.Expired(start + absl::Seconds(1)), std::vector<SequenceKey>{MakeKey(2)});
  table.ClearDeadline(*table.Find(MakeKey(2)));
  EXPECT_EQ(table.Expired(start + absl::Seconds(5)), std::vector<SequenceKey>{MakeKey(1)});
  table.Erase(*table.Find(MakeKey(1)));
  EXPECT_EQ(table.NextDeadline(), absl::InfiniteFuture());
}

TEST(RequestTable, MemoryIsBoundedAndKeepsTheLiving) {
  RequestTable<RequestRecord> table(/*max_remembered=*/10);
  table.Insert(Record(MakeKey(1, 5)));
  for (uint64_t request = 2; request < 100; ++request) {
    table.Erase(table.Insert(Record(MakeKey(request))));
  }
  EXPECT_EQ(table.Classify(MakeKey(1, 4)), Arrival::kStale) << "it lives, so it is not forgotten";
  EXPECT_EQ(table.Classify(MakeKey(99)), Arrival::kStale) << "the latest are remembered";
  EXPECT_EQ(table.Classify(MakeKey(2)), Arrival::kNew) << "the oldest are forgotten";
}

}  // namespace
}  // namespace sluice::worker
