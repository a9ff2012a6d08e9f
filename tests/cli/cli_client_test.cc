// The client commands' inner parts, against a server in this process.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "cli/answer_printer.h"
#include "cli/block_table.h"
#include "cli/chat_client.h"
#include "cli/server_address.h"
#include "cli/status_table.h"
#include "cli/terminal.h"

namespace sluice::cli {
namespace {

using ::testing::HasSubstr;

// Thinks "hm", then repeats the last message; "forever" never ends, "fail" fails,
// "reset" ends as a stream does that the router resets.
class EchoService final : public v1::Generation::Service {
 public:
  grpc::Status Chat(grpc::ServerContext* context, const v1::ChatRequest* request,
                    grpc::ServerWriter<v1::ChatResponse>* writer) override {
    {
      absl::MutexLock lock(&mutex_);
      requests_.push_back(*request);
    }
    const std::string text = request->messages(request->messages_size() - 1).content();
    if (text == "refuse") {
      context->AddTrailingMetadata("sluice-error-code", "no_capacity");
      return {grpc::StatusCode::UNAVAILABLE, "no ready decode worker"};
    }
    if (text == "fail") return {grpc::StatusCode::RESOURCE_EXHAUSTED, "too many questions"};
    v1::ChatResponse response;
    response.set_reasoning_delta("hm");
    writer->Write(response);
    response.Clear();
    response.set_text_delta(text);
    if (request->return_token_ids()) response.add_token_ids(7);
    writer->Write(response);
    if (text == "reset") return grpc::Status::CANCELLED;
    while (text == "forever" && !context->IsCancelled()) {
      absl::SleepFor(absl::Milliseconds(5));
    }
    response.Clear();
    response.set_finished(v1::FINISH_REASON_STOP);
    response.mutable_usage()->set_completion_tokens(3);
    writer->Write(response);
    return grpc::Status::OK;
  }

  v1::ChatRequest LastRequest() {
    absl::MutexLock lock(&mutex_);
    return requests_.back();
  }

 private:
  absl::Mutex mutex_;
  std::vector<v1::ChatRequest> requests_ ABSL_GUARDED_BY(mutex_);
};

class ChatClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    address_ = absl::StrCat("127.0.0.1:", port);
  }
  void TearDown() override { server_->Shutdown(); }

  ChatClient::Sink Collect() {
    ChatClient::Sink sink;
    sink.on_reasoning = [this](absl::string_view text) { absl::StrAppend(&reasoning_, text); };
    sink.on_text = [this](absl::string_view text) { absl::StrAppend(&text_, text); };
    return sink;
  }

  EchoService service_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
  std::string reasoning_;
  std::string text_;
};

TEST_F(ChatClientTest, KeepsTheConversation) {
  v1::ChatRequest defaults;
  v1::ChatMessage* const system = defaults.add_messages();
  system->set_role("system");
  system->set_content("Be brief.");
  ChatClient client(address_, defaults, absl::Seconds(20));
  const auto stats = client.Ask("one", Collect());
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_EQ(stats->num_tokens, 3);
  EXPECT_EQ(stats->finished, v1::FINISH_REASON_STOP);
  EXPECT_GT(stats->time_to_first_token_seconds, 0);
  EXPECT_EQ(reasoning_, "hm");
  EXPECT_EQ(text_, "one");

  ASSERT_TRUE(client.Ask("two", Collect()).ok());
  const v1::ChatRequest second = service_.LastRequest();
  ASSERT_EQ(second.messages_size(), 4);
  EXPECT_EQ(second.messages(0).content(), "Be brief.");
  EXPECT_EQ(second.messages(1).content(), "one");
  EXPECT_EQ(second.messages(2).role(), "assistant");
  EXPECT_EQ(second.messages(2).content(), "one");
  EXPECT_EQ(second.messages(3).content(), "two");

  client.Reset();
  ASSERT_TRUE(client.Ask("three", Collect()).ok());
  EXPECT_EQ(service_.LastRequest().messages_size(), 2);
}

TEST_F(ChatClientTest, CancelEndsTheAnswerAndKeepsWhatCame) {
  ChatClient client(address_, {}, absl::Seconds(20));
  EXPECT_FALSE(client.Cancel());
  absl::Notification begun;
  ChatClient::Sink sink = Collect();
  sink.on_text = [&](absl::string_view) { begun.Notify(); };
  std::thread canceller([&] {
    begun.WaitForNotification();
    EXPECT_TRUE(client.Cancel());
  });
  const auto stats = client.Ask("forever", sink);
  canceller.join();
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_TRUE(stats->cancelled);
  EXPECT_EQ(stats->num_tokens, 1);  // counted, though no usage came
  ASSERT_TRUE(client.Ask("next", Collect()).ok());
  EXPECT_EQ(service_.LastRequest().messages_size(), 3);
}

TEST_F(ChatClientTest, AFailedQuestionIsTakenBack) {
  ChatClient client(address_, {}, absl::Seconds(20));
  const auto stats = client.Ask("fail", Collect());
  EXPECT_EQ(stats.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(stats.status().message(), "too many questions");
  ASSERT_TRUE(client.Ask("next", Collect()).ok());
  EXPECT_EQ(service_.LastRequest().messages_size(), 1);
}

TEST_F(ChatClientTest, AnAnswerThatTheServerCutsOffIsAFailure) {
  ChatClient client(address_, {}, absl::Seconds(20));
  const auto stats = client.Ask("reset", Collect());
  EXPECT_EQ(stats.status().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(std::string(stats.status().message()), HasSubstr("the server cut the answer off"));
  ASSERT_TRUE(client.Ask("next", Collect()).ok());
  EXPECT_EQ(service_.LastRequest().messages_size(), 1);
}

TEST_F(ChatClientTest, ARouterThatRefusesIsNotTakenForNone) {
  ChatClient client(address_, {}, absl::Seconds(20));
  const absl::Status status = client.Ask("refuse", Collect()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), "no ready decode worker");
}

TEST(AnswerStatsTest, ARateNeedsTime) {
  AnswerStats stats;
  stats.num_tokens = 12;
  stats.time_to_first_token_seconds = 0.05;
  stats.total_seconds = 0.0502;
  EXPECT_EQ(stats.tokens_per_second(), 0);
  stats.total_seconds = 0.15;
  EXPECT_NEAR(stats.tokens_per_second(), 110, 1e-6);
  stats.num_tokens = 1;
  EXPECT_EQ(stats.tokens_per_second(), 0);
}

TEST(ServerAddress, ExplainsWhatToDo) {
  const absl::Status status =
      ExplainRpcError({grpc::StatusCode::UNAVAILABLE, "refused"}, grpc::ClientContext(), "here:1");
  EXPECT_THAT(std::string(status.message()), HasSubstr("`sluice up` starts a cluster"));
  ServerFlags flags;
  flags.run_dir = "/nonexistent";
  EXPECT_TRUE(absl::IsNotFound(ServerAddress(flags).status()));
  flags.server = "there:2";
  EXPECT_EQ(*ServerAddress(flags), "there:2");
  for (const char* server : {"dns:///there:2", "[::1]:2", "unix:/run/router"}) {
    flags.server = server;
    EXPECT_EQ(*ServerAddress(flags), server);
  }
  for (const char* server : {"http://there:2", "there", "there:2/v1", ":2"}) {
    flags.server = server;
    EXPECT_TRUE(absl::IsInvalidArgument(ServerAddress(flags).status())) << server;
  }
  setenv("XDG_RUNTIME_DIR", "/nonexistent", 1);
  EXPECT_EQ(*ServerAddress(ServerFlags()), "127.0.0.1:8001");
}

TEST(Terminal, ControlCharactersDoNotPass) {
  EXPECT_EQ(TerminalSafe("a\tb\nc é 你"), "a\tb\nc é 你");
  EXPECT_EQ(TerminalSafe("\x1b[2Jx\x07\x7f\r"), "\uFFFD[2Jx\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(TerminalSafe("\u009b31m"), "\uFFFD31m");
}

TEST(AnswerPrinter, ThinkingIsDimmedOnATerminalAndApartElsewhere) {
  std::ostringstream out, err;
  {
    AnswerPrinter printer(&out, &err, /*is_terminal=*/true, /*dims=*/true);
    printer.Reasoning("h");
    printer.Reasoning("m\x07");
    printer.Text("yes");
    printer.End();
  }
  EXPECT_EQ(out.str(), "\x1b[2mhm\uFFFD\x1b[0m\n\nyes\n");
  out.str("");
  {
    AnswerPrinter printer(&out, &err, /*is_terminal=*/false, /*dims=*/false);
    printer.Reasoning("hm");
    printer.Text("yes");
    printer.End();
  }
  EXPECT_EQ(out.str(), "yes\n");
  EXPECT_EQ(err.str(), "hm\n");
}

// What an error's message meets.
TEST(AnswerPrinter, AnAnswerThatFailsLeavesTheTerminalAsItWas) {
  std::ostringstream out, err;
  {
    AnswerPrinter printer(&out, &err, true, true);
    printer.Reasoning("hm");
  }
  EXPECT_EQ(out.str(), "\x1b[2mhm\x1b[0m\n\n");
  out.str("");
  {
    AnswerPrinter printer(&out, &err, true, true);
    printer.Text("ye");
  }
  EXPECT_EQ(out.str(), "ye\n");
  out.str("");
  { AnswerPrinter printer(&out, &err, true, true); }
  EXPECT_EQ(out.str(), "");
}

TEST(BlockTable, NamesHoldersAndWorkersThatCannotBeAsked) {
  EXPECT_THAT(FormatBlocks({}), HasSubstr("no workers are attached"));
  const std::string report = R"({"worker_id":"d\u001b0","role":"decode","age_seconds":0.1,
    "blocks":{"total":64,"free":50,"cached":2,"active":4,"receiving":8,"sending":0,"quarantined":0},
    "num_holders":3,"holders":[
     {"request_id":"00ff","attempt":2,"state":"receiving","blocks":8,"known_request":true,
      "held_seconds":1.25,"deadline_in_seconds":59.0,"lease_seconds":10.0,"ending":false},
     {"request_id":"0100","attempt":1,"state":"decoding","blocks":4,"known_request":true,
      "held_seconds":30,"deadline_in_seconds":null,"lease_seconds":null,"ending":true}]})";
  const std::vector<WorkerBlocks> workers = {
      {"d", "127.0.0.1:1", report},
      {"p", "127.0.0.1:2", absl::UnavailableError("127.0.0.1:2 does not answer")},
      {"q", "127.0.0.1:3", std::string("[1]")}};
  const std::string text = FormatBlocks(workers);
  EXPECT_THAT(text, HasSubstr("(decode): 64 blocks: 50 free, 2 cached, 4 active, 8 receiving"));
  EXPECT_THAT(text, HasSubstr("deadline in 59s, 10s without progress"));
  EXPECT_THAT(text, HasSubstr("decoding, ending"));
  EXPECT_THAT(text, HasSubstr("and 1 smaller ones"));
  EXPECT_THAT(text, HasSubstr("p: cannot ask its admin port 127.0.0.1:2: 127.0.0.1:2 does not"));
  EXPECT_THAT(text, HasSubstr("q: cannot ask its admin port 127.0.0.1:3: the answer is not"));
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  EXPECT_THAT(BlocksToJson(workers), HasSubstr(R"({"worker_id":"q","address":"127.0.0.1:3")"));
}

TEST(StatusTable, OneLineAWorkerAndATransport) {
  v1::GetStatusResponse status;
  status.set_model("deepseek-tiny");
  status.set_version("0.1.0");
  EXPECT_THAT(FormatStatus(status), HasSubstr("no workers are attached"));

  v1::WorkerStatus* const worker = status.add_workers();
  worker->set_worker_id("decode-0\x1b[31m");
  worker->set_role("decode");
  worker->set_state("ready");
  worker->set_running_requests(7);
  worker->mutable_kv_blocks()->set_total(1234);
  worker->mutable_kv_blocks()->set_quarantined(5);
  worker->set_isa("avx2");
  worker->set_dtype("bf16");
  v1::TransportStatus* const transport = worker->add_transports();
  transport->set_peer("prefill-0");
  transport->set_direction("recv");
  transport->set_transport("shm");
  transport->set_bytes(3 << 20);
  transport->set_bytes_per_second(2.5e9);

  const std::string text = FormatStatus(status);
  EXPECT_THAT(text, HasSubstr("deepseek-tiny"));
  EXPECT_THAT(text, HasSubstr("1234"));
  EXPECT_THAT(text, HasSubstr("bf16/avx2"));
  EXPECT_THAT(text, HasSubstr("2500.0"));
  EXPECT_THAT(text, HasSubstr("3.0"));
  EXPECT_THAT(text, testing::Not(HasSubstr("\x1b")));
  // The heading's columns stand over the values.
  const std::vector<std::string> lines = absl::StrSplit(text, '\n');
  EXPECT_EQ(lines[2].find("STATE"), lines[3].find("ready"));
}

}  // namespace
}  // namespace sluice::cli
