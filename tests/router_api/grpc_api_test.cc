// The public gRPC service over loopback: streams, errors, cancellation, deadlines, health,
// reflection.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "tests/router_api/grpc_fixture.h"

namespace sluice::router {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

void SendRaw(int port, const std::string& name, const std::string& value) {
  boost::asio::io_context io;
  boost::asio::ip::tcp::socket socket(io);
  socket.connect({boost::asio::ip::address_v4::loopback(), static_cast<uint16_t>(port)});
  boost::asio::write(socket, boost::asio::buffer(RawRequest(name, value)));
  absl::SleepFor(absl::Milliseconds(200));  // for an answer, or a refusal
}

TEST_F(GrpcTest, ARequestIdThatCannotBeAHeaderIsReplaced) {
  AnswerWith("ok");
  for (const char* id : {"a b", "a,b", "", "\"x\""}) {
    grpc::ClientContext rpc;
    rpc.AddMetadata("x-request-id", id);
    std::vector<v1::GenerateResponse> responses;
    ASSERT_TRUE(Run(Prompt("Say it"), &responses, &rpc).ok());
    ASSERT_FALSE(responses.empty());
    EXPECT_EQ(responses[0].request_id().size(), 32u) << id;
  }
  for (const char* id : {"a\x01", "\xc3\xa4", "a\tb", "\x7f"}) {
    SendRaw(server_->port(), "x-request-id", id);
    grpc::ClientContext rpc;
    std::vector<v1::GenerateResponse> responses;
    EXPECT_TRUE(Run(Prompt("Say it"), &responses, &rpc).ok()) << "after another's " << id;
  }
}

TEST_F(GrpcTest, GenerateStreamsTextIdsAndUsage) {
  AnswerWith("Hello 🙂 world");
  v1::GenerateRequest request = Prompt("Say it");
  request.set_return_token_ids(true);
  request.mutable_sampling()->set_logprobs(true);
  grpc::ClientContext rpc;
  rpc.AddMetadata("x-request-id", "abc-1");
  std::vector<v1::GenerateResponse> responses;
  ASSERT_TRUE(Run(request, &responses, &rpc).ok());
  std::string text;
  std::vector<TokenId> ids;
  int finished = 0, logprobs = 0;
  for (const auto& response : responses) {
    EXPECT_EQ(response.request_id(), "abc-1");
    text += response.text_delta();
    ids.insert(ids.end(), response.token_ids().begin(), response.token_ids().end());
    finished += response.finished() != v1::FINISH_REASON_UNSPECIFIED;
    logprobs += response.logprobs_size();
  }
  EXPECT_EQ(text, "Hello 🙂 world");
  std::vector<TokenId> expected = Ids("Hello 🙂 world");
  expected.push_back(eos());
  EXPECT_EQ(ids, expected);
  EXPECT_EQ(logprobs, static_cast<int>(expected.size()));
  EXPECT_EQ(finished, 1);
  const v1::GenerateResponse& last = responses.back();
  ASSERT_TRUE(last.has_usage());
  EXPECT_EQ(last.usage().completion_tokens(), static_cast<int>(expected.size()));
  EXPECT_EQ(last.usage().cached_tokens(), 2);
  EXPECT_TRUE(last.timings().has_time_to_first_token());
  EXPECT_EQ(last.timings().stages().count("prefill"), 1u);
  EXPECT_EQ(rpc.GetServerInitialMetadata().find("x-request-id")->second, "abc-1");
}

TEST_F(GrpcTest, UnsetSamplingTakesTheModelsDefaultsNotZero) {
  grpc::ClientContext rpc;
  Bound(&rpc);
  v1::GenerateRequest request = Prompt("Go");
  request.mutable_sampling()->clear_max_tokens();
  request.set_tenant("t1");
  auto reader = stub_->Generate(&rpc, request);
  const auto generation = dispatcher_.NextGeneration();
  EXPECT_FLOAT_EQ(generation.spec().sampling.temperature, 0.2f);
  EXPECT_EQ(generation.spec().tenant_salt, "t1");
  EXPECT_EQ(generation.spec().api, RequestApi::kGrpc);
  EXPECT_EQ(generation.spec().sampling.max_tokens,
            kTestMaxModelLen - static_cast<int>(generation.spec().prompt.size()));
  const absl::Duration left = generation.spec().deadline - MonotonicNow();
  EXPECT_GT(left, absl::Seconds(5));
  EXPECT_LE(left, absl::Seconds(11));  // gRPC rounds time-outs up
  generation.End(GenerationEnd::kLength);
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(GrpcTest, ZeroIsZeroWhenSet) {
  AnswerWith("x");
  v1::GenerateRequest request = Prompt("Go");
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_n(2);
  std::vector<v1::GenerateResponse> responses;
  grpc::ClientContext rpc;
  ASSERT_TRUE(Run(request, &responses, &rpc).ok());
  std::set<int> indexes;
  for (const auto& response : responses) indexes.insert(response.index());
  EXPECT_THAT(indexes, ElementsAre(0, 1));
}

TEST_F(GrpcTest, ChatSplitsReasoning) {
  const std::vector<TokenId> ids =
      tokenizer().Encode("<think>\nhmm\n</think>\n\nYes.", AddedTokens::kMatch);
  dispatcher_.SetScript([=](const FakeDispatcher::Generation& generation) {
    for (TokenId id : ids) generation.Tokens({id});
    generation.End(GenerationEnd::kStop);
  });
  v1::ChatRequest request;
  v1::ChatMessage* message = request.add_messages();
  message->set_role("user");
  message->set_content("Well?");
  grpc::ClientContext rpc;
  Bound(&rpc);
  auto reader = stub_->Chat(&rpc, request);
  std::string text, reasoning;
  v1::ChatResponse response;
  while (reader->Read(&response)) {
    text += response.text_delta();
    reasoning += response.reasoning_delta();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text, "Yes.");
  EXPECT_EQ(reasoning, "hmm");
  EXPECT_GT(response.usage().reasoning_tokens(), 0);
}

TEST_F(GrpcTest, RefusalsNameTheParameter) {
  struct Case {
    std::function<void(v1::GenerateRequest*)> set;
    grpc::StatusCode code;
    const char* error_code;
    const char* param;
  };
  const Case cases[] = {
      {[](auto* r) { r->mutable_sampling()->set_top_p(2); }, grpc::INVALID_ARGUMENT,
       "invalid_request", "top_p"},
      {[](auto* r) { r->mutable_sampling()->set_n(-1); }, grpc::INVALID_ARGUMENT, "invalid_request",
       "n"},
      {[](auto* r) { r->clear_text(); }, grpc::INVALID_ARGUMENT, "invalid_request", "prompt"},
      {[](auto* r) { r->mutable_token_ids()->add_ids(-7); }, grpc::INVALID_ARGUMENT,
       "invalid_request", "prompt"},
      {[](auto* r) { r->set_model("gpt-4"); }, grpc::NOT_FOUND, "model_not_found", "model"},
      {[](auto* r) { r->mutable_sampling()->set_max_tokens(9999); }, grpc::INVALID_ARGUMENT,
       "context_length_exceeded", "prompt"},
  };
  for (const Case& c : cases) {
    v1::GenerateRequest request = Prompt("Go");
    c.set(&request);
    grpc::ClientContext rpc;
    std::vector<v1::GenerateResponse> responses;
    const grpc::Status status = Run(request, &responses, &rpc);
    EXPECT_EQ(status.error_code(), c.code) << status.error_message();
    const auto& trailers = rpc.GetServerTrailingMetadata();
    ASSERT_EQ(trailers.count("sluice-error-code"), 1u);
    EXPECT_EQ(trailers.find("sluice-error-code")->second, c.error_code);
    EXPECT_EQ(trailers.find("sluice-error-param")->second, c.param);
    EXPECT_TRUE(responses.empty());
  }
  EXPECT_EQ(dispatcher_.num_submitted(), 0);
}

TEST_F(GrpcTest, RefusalsOfUnaryCallsNameTheParameter) {
  const auto trailer = [](const grpc::ClientContext& rpc, const char* name) {
    const auto& trailers = rpc.GetServerTrailingMetadata();
    const auto found = trailers.find(name);
    return found == trailers.end() ? "" : std::string(found->second.data(), found->second.size());
  };
  v1::TokenizeRequest tokenize;
  tokenize.set_text("a");
  tokenize.set_model("gpt-4");
  v1::TokenizeResponse tokens;
  grpc::ClientContext first;
  Bound(&first);
  EXPECT_EQ(stub_->Tokenize(&first, tokenize, &tokens).error_code(), grpc::NOT_FOUND);
  EXPECT_EQ(trailer(first, "sluice-error-code"), "model_not_found");
  EXPECT_EQ(trailer(first, "sluice-error-param"), "model");

  tokenize.clear_model();
  tokenize.mutable_chat();
  grpc::ClientContext second;
  Bound(&second);
  EXPECT_EQ(stub_->Tokenize(&second, tokenize, &tokens).error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_EQ(trailer(second, "sluice-error-code"), "invalid_request");
  EXPECT_EQ(trailer(second, "sluice-error-param"), "messages");

  v1::DetokenizeRequest detokenize;
  detokenize.add_token_ids(-1);
  v1::DetokenizeResponse text;
  grpc::ClientContext third;
  Bound(&third);
  EXPECT_EQ(stub_->Detokenize(&third, detokenize, &text).error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_EQ(trailer(third, "sluice-error-code"), "invalid_request");
  EXPECT_EQ(trailer(third, "sluice-error-param"), "tokens");

  for (int i = 0; i <= kTestMaxModelLen; ++i) detokenize.add_token_ids(200);
  grpc::ClientContext fourth;
  Bound(&fourth);
  EXPECT_EQ(stub_->Detokenize(&fourth, detokenize, &text).error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_EQ(trailer(fourth, "sluice-error-code"), "context_length_exceeded");
  EXPECT_EQ(trailer(fourth, "sluice-error-param"), "tokens");
}

TEST_F(GrpcTest, UnaryCallsEchoTheRequestId) {
  const auto echoed = [](const grpc::ClientContext& rpc) {
    const auto& metadata = rpc.GetServerInitialMetadata();
    const auto found = metadata.find("x-request-id");
    return found == metadata.end() ? "" : std::string(found->second.data(), found->second.size());
  };
  const auto prepare = [](grpc::ClientContext* rpc, const char* id) {
    Bound(rpc);
    rpc->AddMetadata("x-request-id", id);
  };
  grpc::ClientContext tokenize, detokenize, models, status, refused, unnamed;
  v1::TokenizeRequest text;
  text.set_text("a");
  v1::TokenizeResponse tokens;
  prepare(&tokenize, "t-1");
  ASSERT_TRUE(stub_->Tokenize(&tokenize, text, &tokens).ok());
  EXPECT_EQ(echoed(tokenize), "t-1");
  v1::DetokenizeRequest ids;
  v1::DetokenizeResponse detokenized;
  prepare(&detokenize, "t-2");
  ASSERT_TRUE(stub_->Detokenize(&detokenize, ids, &detokenized).ok());
  EXPECT_EQ(echoed(detokenize), "t-2");
  v1::ListModelsResponse list;
  prepare(&models, "t-3");
  ASSERT_TRUE(stub_->ListModels(&models, {}, &list).ok());
  EXPECT_EQ(echoed(models), "t-3");
  v1::GetStatusResponse snapshot;
  prepare(&status, "t-4");
  ASSERT_TRUE(stub_->GetStatus(&status, {}, &snapshot).ok());
  EXPECT_EQ(echoed(status), "t-4");
  ids.add_token_ids(-1);
  prepare(&refused, "t-5");
  EXPECT_FALSE(stub_->Detokenize(&refused, ids, &detokenized).ok());
  EXPECT_EQ(echoed(refused), "t-5");
  Bound(&unnamed);
  ASSERT_TRUE(stub_->GetStatus(&unnamed, {}, &snapshot).ok());
  EXPECT_EQ(echoed(unnamed).size(), 32u) << "made here";
}

TEST_F(GrpcTest, DispatcherErrorsKeepTheirCode) {
  const std::pair<absl::Status, grpc::StatusCode> cases[] = {
      {absl::ResourceExhaustedError("queue"), grpc::RESOURCE_EXHAUSTED},
      {absl::UnavailableError("no worker"), grpc::UNAVAILABLE},
      {absl::DeadlineExceededError("late"), grpc::DEADLINE_EXCEEDED},
      {absl::InternalError("lost"), grpc::ABORTED},  // nothing was sent: safe to repeat
  };
  for (const auto& [failure, code] : cases) {
    grpc::ClientContext rpc;
    Bound(&rpc);
    auto reader = stub_->Generate(&rpc, Prompt("Go"));
    dispatcher_.NextGeneration().Fail(failure, absl::Milliseconds(1500));
    v1::GenerateResponse response;
    EXPECT_FALSE(reader->Read(&response));
    const grpc::Status status = reader->Finish();
    EXPECT_EQ(status.error_code(), code);
    const bool retry = code == grpc::RESOURCE_EXHAUSTED || code == grpc::UNAVAILABLE;
    // google.rpc.RetryInfo with 1.5 s.
    EXPECT_EQ(status.error_details().find("google.rpc.RetryInfo") != std::string::npos, retry);
  }
}

TEST_F(GrpcTest, FailureAfterTokensIsInternal) {
  grpc::ClientContext rpc;
  Bound(&rpc);
  auto reader = stub_->Generate(&rpc, Prompt("Go"));
  const auto generation = dispatcher_.NextGeneration();
  generation.Tokens(Ids("some"));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.text_delta(), "some");
  generation.Fail(absl::InternalError("decode worker d-1 lost"));
  EXPECT_FALSE(reader->Read(&response));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::INTERNAL);
  EXPECT_THAT(status.error_message(), HasSubstr("d-1"));
}

TEST_F(GrpcTest, CancellationReachesTheDispatcher) {
  for (const bool after_first_token : {false, true}) {
    grpc::ClientContext rpc;
    Bound(&rpc);
    auto reader = stub_->Generate(&rpc, Prompt("Go"));
    const auto generation = dispatcher_.NextGeneration();
    v1::GenerateResponse response;
    if (after_first_token) {
      generation.Tokens(Ids("some"));
      ASSERT_TRUE(reader->Read(&response));
    }
    rpc.TryCancel();
    EXPECT_TRUE(dispatcher_.WaitForCancel(generation.spec().id, absl::Seconds(1)));
    EXPECT_FALSE(reader->Read(&response));
    EXPECT_EQ(reader->Finish().error_code(), grpc::CANCELLED);
  }
  EXPECT_TRUE(WaitForMetric("sluice_client_disconnects_total{phase=\"streaming\"} 1"));
  EXPECT_TRUE(WaitForMetric("sluice_client_disconnects_total{phase=\"before_first_token\"} 1"));
  EXPECT_TRUE(WaitForMetric("sluice_streams{api=\"grpc\"} 0"));
}

TEST_F(GrpcTest, DeadlineEndsTheGeneration) {
  grpc::ClientContext rpc;
  rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
  auto reader = stub_->Generate(&rpc, Prompt("Go"));
  const auto generation = dispatcher_.NextGeneration();
  EXPECT_LT(generation.spec().deadline - MonotonicNow(), absl::Milliseconds(301));
  EXPECT_TRUE(dispatcher_.WaitForCancel(generation.spec().id, absl::Seconds(2)));
  v1::GenerateResponse response;
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::DEADLINE_EXCEEDED);
}

TEST_F(GrpcTest, APassedDeadlineIsNoClientThatLeft) {
  for (int i = 0; i < 5; ++i) {
    grpc::ClientContext rpc;
    rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
    auto reader = stub_->Generate(&rpc, Prompt("Go"));
    const auto generation = dispatcher_.NextGeneration();
    v1::GenerateResponse response;
    EXPECT_FALSE(reader->Read(&response));
    EXPECT_EQ(reader->Finish().error_code(), grpc::DEADLINE_EXCEEDED);
  }
  EXPECT_TRUE(WaitForMetric("sluice_streams{api=\"grpc\"} 0"));
  EXPECT_THAT(MetricsText(),
              HasSubstr("sluice_client_disconnects_total{phase=\"before_first_token\"} 0"));
}

TEST_F(GrpcTest, OversizedMessagesAreRefusedByGrpc) {
  grpc::ClientContext rpc;
  std::vector<v1::GenerateResponse> responses;
  EXPECT_EQ(Run(Prompt(std::string(300 * 1024, 'a')), &responses, &rpc).error_code(),
            grpc::RESOURCE_EXHAUSTED);
}

TEST_F(GrpcTest, LongPromptsGoThroughThePool) {
  grpc::ClientContext rpc;
  std::vector<v1::GenerateResponse> responses;
  const grpc::Status status = Run(Prompt(std::string(100 * 1024, 'a')), &responses, &rpc);
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("maximum context length is 512 tokens"));
}

TEST_F(GrpcTest, DetokenizeRefusesMoreTokensThanTheContext) {
  v1::DetokenizeRequest request;
  for (int i = 0; i <= kTestMaxModelLen; ++i) request.add_token_ids(200);
  grpc::ClientContext rpc;
  Bound(&rpc);
  v1::DetokenizeResponse text;
  const grpc::Status status = stub_->Detokenize(&rpc, request, &text);
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("maximum context length is 512 tokens"));
}

TEST_F(GrpcTest, TokenizeDetokenizeModelsStatus) {
  v1::TokenizeRequest tokenize;
  tokenize.set_text("héllo");
  tokenize.set_add_special_tokens(false);
  v1::TokenizeResponse tokens;
  {
    grpc::ClientContext rpc;
    Bound(&rpc);
    ASSERT_TRUE(stub_->Tokenize(&rpc, tokenize, &tokens).ok());
    EXPECT_EQ(tokens.max_model_len(), kTestMaxModelLen);
  }
  v1::DetokenizeRequest detokenize;
  *detokenize.mutable_token_ids() = tokens.token_ids();
  v1::DetokenizeResponse text;
  {
    grpc::ClientContext rpc;
    Bound(&rpc);
    ASSERT_TRUE(stub_->Detokenize(&rpc, detokenize, &text).ok());
    EXPECT_EQ(text.text(), "héllo");
  }
  {
    grpc::ClientContext rpc;
    Bound(&rpc);
    detokenize.add_token_ids(-1);
    EXPECT_EQ(stub_->Detokenize(&rpc, detokenize, &text).error_code(), grpc::INVALID_ARGUMENT);
  }
  {
    grpc::ClientContext rpc;
    Bound(&rpc);
    v1::ListModelsResponse models;
    ASSERT_TRUE(stub_->ListModels(&rpc, {}, &models).ok());
    ASSERT_EQ(models.models_size(), 2);
    EXPECT_EQ(models.models(0).id(), "deepseek-tiny");
  }
  ClusterSnapshot snapshot;
  snapshot.requests_running = 3;
  WorkerSnapshot worker;
  worker.worker_id = "d-0";
  worker.role = "decode";
  worker.state = "ready";
  worker.blocks_total = 10;
  worker.blocks_free = 4;
  worker.heartbeat_age = absl::Milliseconds(1250);
  worker.transports.push_back({"p-0", "recv", "shm", 7, 1.5});
  snapshot.workers.push_back(worker);
  dispatcher_.SetSnapshot(snapshot);
  grpc::ClientContext rpc;
  Bound(&rpc);
  v1::GetStatusResponse status;
  ASSERT_TRUE(stub_->GetStatus(&rpc, {}, &status).ok());
  EXPECT_EQ(status.requests_running(), 3);
  ASSERT_EQ(status.workers_size(), 1);
  EXPECT_EQ(status.workers(0).worker_id(), "d-0");
  EXPECT_EQ(status.workers(0).kv_blocks().free(), 4);
  EXPECT_EQ(status.workers(0).heartbeat_age().seconds(), 1);
  EXPECT_EQ(status.workers(0).heartbeat_age().nanos(), 250000000);
  EXPECT_EQ(status.workers(0).transports(0).peer(), "p-0");
  EXPECT_TRUE(WaitForMetric("sluice_grpc_requests_total{code=\"0\",method=\"GetStatus\"} 1"));
}

// grpc.health.v1 and reflection are spoken as raw bytes: their protos are not among ours.
std::string CallUnary(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                      const std::string& request_bytes) {
  grpc::GenericStub stub(channel);
  grpc::CompletionQueue queue;
  grpc::ClientContext rpc;
  rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  const grpc::Slice slice(request_bytes);
  const grpc::ByteBuffer request(&slice, 1);
  auto call = stub.PrepareCall(&rpc, method, &queue);
  void* tag;
  bool ok;
  call->StartCall(reinterpret_cast<void*>(1));
  queue.Next(&tag, &ok);
  call->WriteLast(request, grpc::WriteOptions(), reinterpret_cast<void*>(2));
  queue.Next(&tag, &ok);
  grpc::ByteBuffer response;
  call->Read(&response, reinterpret_cast<void*>(3));
  queue.Next(&tag, &ok);
  grpc::Status status;
  call->Finish(&status, reinterpret_cast<void*>(4));
  queue.Next(&tag, &ok);
  if (!status.ok()) return absl::StrCat("status ", status.error_code());
  std::vector<grpc::Slice> slices;
  response.Dump(&slices);
  std::string bytes;
  for (const grpc::Slice& part : slices) {
    bytes.append(reinterpret_cast<const char*>(part.begin()), part.size());
  }
  return bytes;
}

constexpr char kHealthCheck[] = "/grpc.health.v1.Health/Check";
const std::string kServing("\x08\x01", 2);
const std::string kNotServing("\x08\x02", 2);

TEST_F(GrpcTest, HealthFollowsReadiness) {
  const std::string service = "sluice.v1.Generation";
  const std::string named = absl::StrCat("\x0a", std::string(1, service.size()), service);
  const auto wait_for = [&](const std::string& request, const std::string& expected) {
    for (int i = 0; i < 100; ++i) {
      if (CallUnary(channel_, kHealthCheck, request) == expected) return true;
      absl::SleepFor(absl::Milliseconds(50));
    }
    return false;
  };
  EXPECT_TRUE(wait_for("", kServing));
  EXPECT_TRUE(wait_for(named, kServing));
  EXPECT_EQ(CallUnary(channel_, kHealthCheck, absl::StrCat("\x0a\x01", "x")), "status 5");
  dispatcher_.SetNotReadyReason("no prefill worker");
  EXPECT_TRUE(wait_for("", kNotServing));
  EXPECT_TRUE(wait_for(named, kNotServing));
}

TEST_F(GrpcTest, ReflectionListsTheService) {
  // ServerReflectionRequest{list_services = 7: ""}.
  const std::string response =
      CallUnary(channel_, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                std::string("\x3a\x00", 2));
  EXPECT_THAT(response, HasSubstr("sluice.v1.Generation"));
  EXPECT_THAT(response, HasSubstr("grpc.health.v1.Health"));
}

TEST_F(GrpcTest, DrainFinishesStreamsAndRefusesNewOnes) {
  grpc::ClientContext rpc;
  Bound(&rpc);
  auto reader = stub_->Generate(&rpc, Prompt("Go"));
  const auto generation = dispatcher_.NextGeneration();
  generation.Tokens(Ids("some"));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  std::thread drain([&] { server_->Drain(absl::Seconds(10)); });
  bool refused = false;
  for (int i = 0; i < 100 && !refused; ++i) {
    grpc::ClientContext other;
    v1::GenerateRequest bad = Prompt("Go");
    bad.set_model("gpt-4");  // never reaches the dispatcher
    std::vector<v1::GenerateResponse> responses;
    refused = Run(bad, &responses, &other).error_code() == grpc::UNAVAILABLE;
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_TRUE(refused);
  EXPECT_EQ(CallUnary(channel_, kHealthCheck, ""), kNotServing);
  generation.Tokens(Ids("more"));
  generation.End(GenerationEnd::kStop);
  std::string rest;
  while (reader->Read(&response)) rest += response.text_delta();
  EXPECT_EQ(rest, "more");
  EXPECT_TRUE(reader->Finish().ok());
  drain.join();
}

TEST_F(GrpcTest, DestructionCancelsWhatRuns) {
  grpc::ClientContext rpc;
  Bound(&rpc);
  auto reader = stub_->Generate(&rpc, Prompt("Go"));
  const auto generation = dispatcher_.NextGeneration();
  server_.reset();
  EXPECT_TRUE(dispatcher_.WaitForCancel(generation.spec().id, absl::Seconds(1)));
  v1::GenerateResponse response;
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_FALSE(reader->Finish().ok());
}

TEST_F(GrpcTest, ATakenPortIsNamed) {
  GrpcOptions options;
  options.port = server_->port();
  const auto second = StartGrpcServer(options, context_.get());
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(absl::StrCat(options.port)));
}

TEST_F(GrpcTest, ABareIpv6AddressIsTaken) {
  GrpcOptions options;
  options.host = "[::1]";
  if (!StartGrpcServer(options, context_.get()).ok()) GTEST_SKIP() << "no IPv6 here";
  options.host = "::1";
  const auto server = StartGrpcServer(options, context_.get());
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_GT((*server)->port(), 0);
}

class FewStreamsTest : public GrpcTest {
 protected:
  static GrpcOptions FewStreams() {
    GrpcOptions options;
    options.max_streams = 1;
    return options;
  }
  FewStreamsTest() : GrpcTest(FewStreams()) {}
};

TEST_F(FewStreamsTest, StreamsAreCapped) {
  grpc::ClientContext rpc;
  Bound(&rpc);
  auto reader = stub_->Generate(&rpc, Prompt("Go"));
  const auto generation = dispatcher_.NextGeneration();
  Connect(0);  // another connection: HTTP/2 itself caps the streams of one
  grpc::ClientContext other;
  std::vector<v1::GenerateResponse> responses;
  EXPECT_EQ(Run(Prompt("Go"), &responses, &other).error_code(), grpc::RESOURCE_EXHAUSTED);
  generation.End(GenerationEnd::kLength);
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
}

}  // namespace
}  // namespace sluice::router
