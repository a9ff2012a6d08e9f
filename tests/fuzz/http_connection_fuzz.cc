// Bytes as a client may send them to the HTTP port: request lines, headers, framing, pipelining.
// The whole server reads them from a socket; every request that it understands ends at once.
//   - what comes back is a sequence of HTTP/1.1 answers, none of them a failure of ours;
//   - the server closes when the client has closed its side, and nothing stays behind.
// Input: the client's bytes. Those after each 0xff byte go into a segment of their own.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "common/check.h"
#include "metrics/metrics.h"
#include "services/router/api/api_context.h"
#include "services/router/http/http_server.h"
#include "tests/fuzz/byte_source.h"

namespace sluice::router {
namespace {

// libFuzzer's watchdog is a signal every few seconds that interrupts calls.
template <typename Call>
ssize_t Uninterrupted(const Call& call) {
  ssize_t result;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result;
}

// Ends whatever it is given.
class EndingDispatcher : public Dispatcher {
 public:
  void Submit(GenerationSpec, std::shared_ptr<GenerationSink> sink) override {
    GenerationResult result;
    result.end = GenerationEnd::kFailed;
    result.status = absl::ResourceExhaustedError("full");
    sink->OnEnd(result);
    sink->Flush(/*alone=*/true);
  }
  void Cancel(RequestId) override {}
  void Stop(RequestId) override {}
  ClusterSnapshot Snapshot() const override { return {}; }
  std::string NotReadyReason() const override { return ""; }
};

class Server {
 public:
  Server() {
    std::signal(SIGPIPE, SIG_IGN);
    auto model = LoadServedModel(SLUICE_SOURCE_DIR "/models/deepseek-tiny");
    SLUICE_CHECK(model.ok());
    ApiOptions options;
    options.served_model_names = {"deepseek-tiny"};
    auto context = ApiContext::Create(options, *std::move(model), &dispatcher_, &registry_);
    SLUICE_CHECK(context.ok());
    context_ = *std::move(context);
    auto server = StartHttpServer(HttpOptions(), context_.get());
    SLUICE_CHECK(server.ok());
    server_ = *std::move(server);
  }

  int Connect() const {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    SLUICE_CHECK(fd >= 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    // From another loopback address each time: a thousand connections a second would use up the
    // ports of one, each of which rests for a minute.
    static uint32_t last_address = 0;
    const int one = 1;
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + last_address++ % 60000);
    SLUICE_CHECK(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
    address.sin_port = htons(static_cast<uint16_t>(server_->port()));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    SLUICE_CHECK(Uninterrupted([&] {
                   return connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address));
                 }) == 0);
    const timeval limit = {10, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    return fd;
  }

 private:
  EndingDispatcher dispatcher_;
  MetricsRegistry registry_;
  std::unique_ptr<ApiContext> context_;
  std::unique_ptr<HttpServer> server_;
};

// Takes one answer off `text` and returns its status. What a HEAD request leaves out looks like the
// beginning of the next answer, so bodies are taken only if they are there.
int TakeAnswer(absl::string_view* text) {
  constexpr absl::string_view kVersion = "HTTP/1.1 ";
  int status = 0;
  SLUICE_CHECK(absl::StartsWith(*text, kVersion));
  SLUICE_CHECK(absl::SimpleAtoi(text->substr(kVersion.size(), 3), &status));
  const size_t end_of_header = text->find("\r\n\r\n");
  SLUICE_CHECK(end_of_header != absl::string_view::npos);
  text->remove_prefix(end_of_header + 4);
  const size_t next = text->find("HTTP/1.1 ");
  text->remove_prefix(next == absl::string_view::npos ? text->size() : next);
  return status;
}

void CheckAnswers(absl::string_view text) {
  while (!text.empty()) {
    const int status = TakeAnswer(&text);
    SLUICE_CHECK(status >= 100 && status < 600 && status != 500);
  }
}

void Fuzz(fuzz::ByteSource source) {
  static const Server server;
  const int fd = server.Connect();
  while (!source.empty()) {
    const absl::string_view segment = source.Until('\xff');
    // The server may have seen enough and closed.
    const ssize_t sent =
        Uninterrupted([&] { return send(fd, segment.data(), segment.size(), MSG_NOSIGNAL); });
    if (sent < 0) break;
  }
  shutdown(fd, SHUT_WR);
  std::string answers;
  char buffer[16384];
  ssize_t got;
  while ((got = Uninterrupted([&] { return recv(fd, buffer, sizeof(buffer), 0); })) > 0) {
    answers.append(buffer, static_cast<size_t>(got));
  }
  const bool in_time = got == 0 || errno == ECONNRESET || errno == EPIPE;
  close(fd);
  SLUICE_CHECK(in_time);
  CheckAnswers(answers);
}

}  // namespace
}  // namespace sluice::router

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  sluice::router::Fuzz(sluice::fuzz::ByteSource(data, size));
  return 0;
}
