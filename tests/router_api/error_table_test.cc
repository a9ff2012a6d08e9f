// The error table: complete, consistent, and the same as docs/errors.md.
#include "services/router/api/error_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <sstream>

#include "absl/strings/str_cat.h"

namespace sluice::router {
namespace {

const char* Advice(const ErrorRow& row) {
  switch (row.retry) {
    case RetryAdvice::kNever:
      return "never";
    case RetryAdvice::kAfter:
      return "after";
    case RetryAdvice::kIfNothingWasSent:
      return "if nothing was sent";
  }
  return "";
}

std::string DocLine(const ErrorRow& row) {
  std::string grpc = absl::StatusCodeToString(row.grpc_code);
  if (row.grpc_code_before_tokens != row.grpc_code) {
    absl::StrAppend(&grpc, " (", absl::StatusCodeToString(row.grpc_code_before_tokens),
                    " before the first token)");
  }
  std::string retry = Advice(row);
  if (row.retry == RetryAdvice::kAfter) {
    absl::StrAppend(&retry, " ", absl::FormatDuration(row.default_retry_after));
  }
  return absl::StrCat("| ", row.name, " | ", row.http_status, " | ", grpc, " | ", row.type, " | ",
                      row.code, " | ", retry, " | ", row.when, " |");
}

TEST(ErrorTable, IsWhatTheDocumentSays) {
  std::ifstream file(SLUICE_SOURCE_DIR "/docs/errors.md");
  ASSERT_TRUE(file) << "docs/errors.md is missing";
  std::vector<std::string> lines;
  bool in_table = false;
  for (std::string line; std::getline(file, line);) {
    if (in_table && line.rfind("| ", 0) != 0) break;
    if (in_table) lines.push_back(line);
    if (line.rfind("|---", 0) == 0) in_table = true;
  }
  std::vector<std::string> expected;
  for (const ErrorRow& row : ErrorTable()) expected.push_back(DocLine(row));
  EXPECT_EQ(lines, expected);
}

TEST(ErrorTable, EachKindHasOneRow) {
  std::set<std::string> names;
  int index = 0;
  for (const ErrorRow& row : ErrorTable()) {
    EXPECT_EQ(static_cast<int>(row.kind), index++) << row.name;
    EXPECT_TRUE(names.insert(row.name).second) << row.name;
    EXPECT_EQ(&RowOf(row.kind), &row);
  }
  EXPECT_EQ(index, static_cast<int>(ErrorKind::kClientGone) + 1);
}

TEST(ErrorTable, StatusesCarryKindAndParameter) {
  const ApiError error = ToApiError(MakeError(ErrorKind::kContextLength, "too long", "prompt"));
  EXPECT_EQ(error.kind, ErrorKind::kContextLength);
  EXPECT_EQ(error.param, "prompt");
  EXPECT_EQ(error.message, "too long");
}

TEST(ErrorTable, ForeignStatusesMapByCode) {
  EXPECT_EQ(ToApiError(absl::ResourceExhaustedError("")).kind, ErrorKind::kQueueFull);
  EXPECT_EQ(ToApiError(absl::UnavailableError("")).kind, ErrorKind::kNoCapacity);
  EXPECT_EQ(ToApiError(absl::DeadlineExceededError("")).kind, ErrorKind::kDeadline);
  EXPECT_EQ(ToApiError(absl::InternalError("")).kind, ErrorKind::kWorkerLost);
  EXPECT_EQ(ToApiError(absl::InvalidArgumentError("")).kind, ErrorKind::kInvalidRequest);
  EXPECT_EQ(ToApiError(absl::OutOfRangeError("")).kind, ErrorKind::kContextLength);
  EXPECT_EQ(ToApiError(absl::UnknownError("")).kind, ErrorKind::kInternal);
}

TEST(ErrorTable, RetryIsOfferedOnlyWhenItCanHelp) {
  ApiError error;
  error.kind = ErrorKind::kWorkerLost;
  EXPECT_TRUE(error.should_retry());
  EXPECT_EQ(error.grpc_code(), absl::StatusCode::kAborted);
  error.tokens_sent = true;
  EXPECT_FALSE(error.should_retry());
  EXPECT_EQ(error.grpc_code(), absl::StatusCode::kInternal);
  EXPECT_EQ(error.RetryAfter(), std::nullopt);

  error = ApiError{ErrorKind::kQueueFull, "", "", absl::Hours(1), false};
  EXPECT_TRUE(error.should_retry());
  EXPECT_EQ(error.RetryAfter(), absl::Seconds(120));
  error.retry_after = absl::ZeroDuration();
  EXPECT_EQ(error.RetryAfter(), absl::Milliseconds(1));
  error.tokens_sent = true;
  EXPECT_FALSE(error.should_retry());
  EXPECT_EQ(error.RetryAfter(), std::nullopt);
  EXPECT_FALSE((ApiError{ErrorKind::kInvalidRequest, "", "", {}, false}).should_retry());
}

}  // namespace
}  // namespace sluice::router
