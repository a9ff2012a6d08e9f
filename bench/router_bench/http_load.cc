#include "bench/router_bench/http_load.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "bench/router_bench/response_reader.h"

namespace sluice::bench {
namespace {

// Of one text field; every token of the mock fleet prints as one plain ASCII character.
int64_t CountTokens(absl::string_view json) {
  constexpr absl::string_view kText = "\"text\":\"";
  const size_t at = json.find(kText);
  if (at == absl::string_view::npos) return 0;
  const size_t begin = at + kText.size();
  const size_t end = json.find('"', begin);
  return end == absl::string_view::npos ? 0 : static_cast<int64_t>(end - begin);
}

std::string MakeRequest(const HttpLoadOptions& options, int stream) {
  std::vector<int> prompt(static_cast<size_t>(options.prompt_tokens), kStreamTokenBase);
  prompt[0] = FirstStreamToken(stream);
  prompt[1] = SecondStreamToken(stream);
  const std::string body = absl::StrCat(
      "{\"model\":\"", options.model, "\",\"prompt\":[", absl::StrJoin(prompt, ","),
      "],\"max_tokens\":", options.max_tokens,
      ",\"temperature\":0,\"ignore_eos\":true,\"stream\":", options.stream ? "true" : "false", "}");
  return absl::StrCat("POST /v1/completions HTTP/1.1\r\nHost: ", options.host, ":", options.port,
                      "\r\nContent-Type: application/json\r\nContent-Length: ", body.size(),
                      "\r\n\r\n", body);
}

class HttpLoadImpl;

class Client final : public ResponseReader::Listener {
 public:
  Client(HttpLoadImpl* load, int stream, int socket, std::string request)
      : load_(load), stream_(stream), socket_(socket), request_(std::move(request)) {}
  ~Client() override { close(socket_); }

  int socket() const { return socket_; }
  void SendRequest();
  // False: the connection is over.
  bool OnReadable();

  void OnBody(absl::string_view body) override;
  void OnEnd(int status) override;

 private:
  HttpLoadImpl* const load_;
  const int stream_;
  const int socket_;
  const std::string request_;

  ResponseReader reader_;
  int64_t request_sent_ns_ = 0;
  int64_t received_ns_ = 0;
  int64_t num_tokens_ = 0;  // of this answer
  std::string last_body_;   // of an answer that is not a stream
};

class HttpLoadImpl final : public HttpLoad {
 public:
  HttpLoadImpl(HttpLoadOptions options, TokenLedger* ledger)
      : options_(std::move(options)), ledger_(*ledger) {}

  ~HttpLoadImpl() override {
    stopping_ = true;
    if (wake_ >= 0) {
      const uint64_t one = 1;
      if (write(wake_, &one, sizeof(one)) < 0) std::abort();  // cannot fail: a fresh counter
    }
    if (thread_.joinable()) thread_.join();
    clients_.clear();
    if (epoll_ >= 0) close(epoll_);
    if (wake_ >= 0) close(wake_);
  }

  absl::Status ConnectAll() {
    epoll_ = epoll_create1(EPOLL_CLOEXEC);
    wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (epoll_ < 0 || wake_ < 0) return absl::ErrnoToStatus(errno, "epoll");
    epoll_event wake{};
    wake.events = EPOLLIN;
    epoll_ctl(epoll_, EPOLL_CTL_ADD, wake_, &wake);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(options_.port));
    if (inet_pton(AF_INET, options_.host.c_str(), &address.sin_addr) != 1) {
      return absl::InvalidArgumentError(absl::StrCat(options_.host, " is not an IPv4 address"));
    }
    for (int i = 0; i < options_.num_connections; ++i) {
      const int socket_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      if (socket_fd < 0) {
        return absl::ErrnoToStatus(errno, absl::StrCat("socket of connection ", i));
      }
      auto client = std::make_unique<Client>(this, i, socket_fd, MakeRequest(options_, i));
      if (connect(socket_fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
        return absl::ErrnoToStatus(
            errno, absl::StrCat("connection ", i, " to ", options_.host, ":", options_.port));
      }
      const int on = 1;
      setsockopt(socket_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      epoll_event event{};
      event.events = EPOLLIN;
      event.data.ptr = client.get();
      epoll_ctl(epoll_, EPOLL_CTL_ADD, socket_fd, &event);
      clients_.push_back(std::move(client));
    }
    return absl::OkStatus();
  }

  void Start() override {
    thread_ = std::thread([this] { Run(); });
  }

  Counts counts() const override {
    Counts counts;
    counts.answers = answers_;
    counts.events = events_;
    counts.tokens = tokens_;
    counts.failures = failures_;
    absl::MutexLock lock(&mu_);
    counts.first_failure = first_failure_;
    return counts;
  }
  int num_begun() const override { return num_begun_; }

  void KeepSamples() override {
    absl::MutexLock lock(&mu_);
    samples_ = Samples();
    keep_samples_ = true;
  }
  Samples TakeSamples() override {
    absl::MutexLock lock(&mu_);
    keep_samples_ = false;
    return std::exchange(samples_, Samples());
  }

  // ---- For clients, on thread_.

  const HttpLoadOptions& options() const { return options_; }
  TokenLedger& ledger() { return ledger_; }

  void CountAnswer(int64_t round_trip_ns) {
    ++answers_;
    if (!keep_samples_) return;
    absl::MutexLock lock(&mu_);
    samples_.round_trip.push_back(round_trip_ns);
  }
  void CountBegun(int by) { num_begun_ += by; }
  void CountTokens(int64_t count) { tokens_ += count; }
  void CountEvent(int stream, int64_t first_index, int64_t count, int64_t now_ns) {
    ++events_;
    if (!keep_samples_) return;
    absl::MutexLock lock(&mu_);
    for (int64_t i = first_index; i < first_index + count; ++i) {
      samples_.token.push_back(now_ns - ledger_.SentAt(stream, i));
    }
  }
  void CountFailure(const std::string& what) {
    ++failures_;
    absl::MutexLock lock(&mu_);
    if (first_failure_.empty()) first_failure_ = what;
  }

 private:
  void Run() {
    for (const auto& client : clients_) client->SendRequest();
    std::array<epoll_event, 256> events;
    while (!stopping_) {
      const int count = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), -1);
      for (int i = 0; i < count; ++i) {
        auto* const client = static_cast<Client*>(events[static_cast<size_t>(i)].data.ptr);
        if (client == nullptr || client->OnReadable()) continue;
        epoll_ctl(epoll_, EPOLL_CTL_DEL, client->socket(), nullptr);
      }
    }
  }

  const HttpLoadOptions options_;
  TokenLedger& ledger_;
  int epoll_ = -1;
  int wake_ = -1;
  std::vector<std::unique_ptr<Client>> clients_;

  std::atomic<bool> stopping_{false};
  std::atomic<bool> keep_samples_{false};
  std::atomic<int64_t> answers_{0}, events_{0}, tokens_{0}, failures_{0};
  std::atomic<int> num_begun_{0};
  mutable absl::Mutex mu_;
  Samples samples_ ABSL_GUARDED_BY(mu_);
  std::string first_failure_ ABSL_GUARDED_BY(mu_);

  std::thread thread_;
};

void Client::SendRequest() {
  num_tokens_ = 0;
  request_sent_ns_ = NowNanoseconds();
  // Small, and nothing else is on its way: the kernel takes it whole.
  const ssize_t sent = send(socket_, request_.data(), request_.size(), MSG_NOSIGNAL);
  if (sent != static_cast<ssize_t>(request_.size())) load_->CountFailure("a request was not taken");
}

bool Client::OnReadable() {
  char buffer[16 * 1024];
  const ssize_t size = recv(socket_, buffer, sizeof(buffer), MSG_DONTWAIT);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  received_ns_ = NowNanoseconds();
  if (size <= 0) {
    load_->CountFailure("the router closed a connection");
    return false;
  }
  if (reader_.Read(absl::string_view(buffer, static_cast<size_t>(size)), this)) return true;
  load_->CountFailure("an answer is not HTTP");
  return false;
}

void Client::OnBody(absl::string_view body) {
  const int64_t count = CountTokens(body);
  if (num_tokens_ == 0 && count > 0) load_->CountBegun(1);
  load_->CountTokens(count);
  if (!load_->options().stream) {
    last_body_ = std::string(body);
  } else if (count > 0) {
    load_->CountEvent(stream_, num_tokens_, count, received_ns_);
  }
  num_tokens_ += count;
}

void Client::OnEnd(int status) {
  if (num_tokens_ > 0) load_->CountBegun(-1);
  if (status != 200) {
    load_->CountFailure(absl::StrCat("status ", status, ": ", last_body_));
  } else if (num_tokens_ != load_->options().max_tokens) {
    load_->CountFailure(
        absl::StrCat("an answer has ", num_tokens_, " tokens, not ", load_->options().max_tokens));
  } else {
    load_->CountAnswer(received_ns_ - request_sent_ns_);
  }
  SendRequest();
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpLoad>> HttpLoad::Connect(const HttpLoadOptions& options,
                                                            TokenLedger* ledger) {
  auto load = std::make_unique<HttpLoadImpl>(options, ledger);
  if (absl::Status status = load->ConnectAll(); !status.ok()) return status;
  return load;
}

}  // namespace sluice::bench
