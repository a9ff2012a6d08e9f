// A gRPC server on loopback before a scripted dispatcher, and a client of it.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "services/router/grpc/grpc_server.h"
#include "sluice/v1/generation.grpc.pb.h"
#include "tests/router_api/api_fixture.h"

namespace sluice::router {

class GrpcTest : public ApiFixture {
 protected:
  explicit GrpcTest(GrpcOptions options = SmallLimits()) {
    auto server = StartGrpcServer(options, context_.get());
    if (!server.ok()) {
      ADD_FAILURE() << server.status();
      std::abort();
    }
    server_ = *std::move(server);
    Connect(0);
  }
  static GrpcOptions SmallLimits() {
    GrpcOptions options;
    options.max_stream_buffer_bytes = 64 * 1024;
    options.max_receive_bytes = 256 * 1024;
    return options;
  }
  void Connect(int unread_bytes) {
    grpc::ChannelArguments arguments;
    if (unread_bytes > 0) {
      arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, unread_bytes);
      arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    }
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channel_ = grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", server_->port()),
                                         grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::Generation::NewStub(channel_);
  }
  // Every call of a test ends.
  static void Bound(grpc::ClientContext* rpc, int seconds = 10) {
    rpc->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(seconds));
  }
  static v1::GenerateRequest Prompt(const std::string& text) {
    v1::GenerateRequest request;
    request.set_text(text);
    request.mutable_sampling()->set_max_tokens(64);
    return request;
  }
  grpc::Status Run(const v1::GenerateRequest& request, std::vector<v1::GenerateResponse>* responses,
                   grpc::ClientContext* rpc) {
    Bound(rpc);
    auto reader = stub_->Generate(rpc, request);
    v1::GenerateResponse response;
    while (reader->Read(&response)) responses->push_back(response);
    return reader->Finish();
  }
  bool WaitForMetric(const std::string& line) {
    for (int i = 0; i < 300; ++i) {
      if (MetricsText().find("\n" + line + "\n") != std::string::npos) return true;
      absl::SleepFor(absl::Milliseconds(10));
    }
    ADD_FAILURE() << "never saw " << line;
    return false;
  }

  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Generation::Stub> stub_;
};

// A request with one more header, byte by byte: gRPC's own clients refuse to send such values.
inline std::string RawRequest(const std::string& name, const std::string& value,
                              const std::string& message = "") {
  const auto frame = [](char type, char flags, char stream, const std::string& payload) {
    std::string out = {0,
                       static_cast<char>(payload.size() >> 8),
                       static_cast<char>(payload.size()),
                       type,
                       flags,
                       0,
                       0,
                       0,
                       stream};
    return out + payload;
  };
  std::string headers;
  for (const auto& [key, text] : std::initializer_list<std::pair<std::string, std::string>>{
           {":method", "POST"},
           {":scheme", "http"},
           {":path", "/sluice.v1.Generation/Generate"},
           {":authority", "localhost"},
           {"te", "trailers"},
           {"content-type", "application/grpc"},
           {name, value}}) {  // literals without indexing (RFC 7541, 6.2.2)
    headers += '\0';
    headers += static_cast<char>(key.size()) + key + static_cast<char>(text.size()) + text;
  }
  constexpr char kSettings = 4, kHeaders = 1, kData = 0, kEndHeaders = 4, kEndStream = 1;
  return "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(kSettings, 0, 0, "") +
         frame(kHeaders, kEndHeaders, 1, headers) +
         frame(kData, kEndStream, 1,
               std::string(4, '\0') + static_cast<char>(message.size()) + message);
}

}  // namespace sluice::router
