#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "bench/loadgen/deadline_socket.h"
#include "bench/loadgen/http_models.h"
#include "bench/loadgen/target.h"
#include "common/clock.h"
#include "simdjson.h"

namespace sluice::loadgen {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;

constexpr size_t kMaxEventBytes = 4 << 20;

class HttpTarget : public Target {
 public:
  HttpTarget(std::string host, std::string port, std::string model)
      : host_(std::move(host)), port_(std::move(port)), model_(std::move(model)) {}

  RequestRecord Run(const PlannedRequest& request, absl::Duration timeout) override {
    RequestRecord record;
    record.first_token = absl::InfiniteFuture();
    socket_.set_deadline(MonotonicNow() + timeout);
    record.sent = MonotonicNow();
    record.status = Exchange(request, &record);
    return record;
  }

 private:
  static absl::Status Failure(const char* what, const boost::system::error_code& error) {
    if (error == asio::error::timed_out) {
      return absl::DeadlineExceededError(absl::StrCat(what, ": the request's time is up"));
    }
    return absl::UnavailableError(absl::StrCat(what, ": ", error.message()));
  }

  // A refusal leaves the connection as it is; an answer of which a part is missing does not.
  absl::Status Exchange(const PlannedRequest& planned, RequestRecord* record) {
    bool answer_is_whole = false;
    absl::Status status = Converse(planned, record, &answer_is_whole);
    if (!answer_is_whole) socket_.Close();
    return status;
  }

  absl::Status Converse(const PlannedRequest& planned, RequestRecord* record,
                        bool* answer_is_whole) {
    if (absl::Status status = Send(planned); !status.ok()) return status;
    return Receive(record, answer_is_whole);
  }

  // A kept connection may have been closed meanwhile; that is no failure of this request. Once it
  // is sent, the server may be at work on it, and what goes wrong is the server's.
  absl::Status Send(const PlannedRequest& planned) {
    boost::system::error_code error;
    http::request<http::string_body> request(http::verb::post, "/v1/completions", 11);
    request.set(http::field::host, absl::StrCat(host_, ":", port_));
    request.set(http::field::content_type, "application/json");
    request.body() =
        absl::StrCat("{\"model\":\"", model_, "\",\"prompt\":[", absl::StrJoin(planned.prompt, ","),
                     "],\"max_tokens\":", planned.max_tokens,
                     ",\"temperature\":0,\"ignore_eos\":true,\"stream\":true,"
                     "\"stream_options\":{\"include_usage\":true}}");
    request.prepare_payload();
    if (socket_.is_open() && socket_.IsQuiet()) {
      http::write(socket_, request, error);
      if (!error) return absl::OkStatus();
      if (error == asio::error::timed_out) return Failure("send", error);
    }
    error = socket_.Connect(host_, port_);
    if (error) return Failure(absl::StrCat("connect to ", host_, ":", port_).c_str(), error);
    buffer_.clear();
    http::write(socket_, request, error);
    return error ? Failure("send", error) : absl::OkStatus();
  }

  absl::Status Receive(RequestRecord* record, bool* answer_is_whole) {
    boost::system::error_code error;
    http::response_parser<http::buffer_body> parser;
    parser.body_limit(boost::none);
    http::read_header(socket_, buffer_, parser, error);
    if (error) return Failure("receive", error);
    const unsigned status_code = parser.get().result_int();
    pending_.clear();
    char chunk[16384];
    while (!parser.is_done()) {
      parser.get().body().data = chunk;
      parser.get().body().size = sizeof(chunk);
      parser.get().body().more = true;
      http::read_some(socket_, buffer_, parser, error);
      if (error == http::error::need_buffer) error = {};
      if (error) return Failure("receive", error);
      pending_.append(chunk, sizeof(chunk) - parser.get().body().size);
      if (status_code == 200) {
        if (absl::Status status = TakeEvents(MonotonicNow(), record); !status.ok()) return status;
      }
      if (pending_.size() > kMaxEventBytes) return absl::InternalError("an event without end");
    }
    *answer_is_whole = parser.get().keep_alive();
    if (status_code != 200) {
      const std::string text =
          absl::StrCat("HTTP ", status_code, ": ", absl::string_view(pending_).substr(0, 200));
      if (status_code == 429) return absl::ResourceExhaustedError(text);
      if (status_code == 503) return absl::FailedPreconditionError(text);
      return absl::InternalError(text);
    }
    if (record->first_token == absl::InfiniteFuture()) {
      return absl::InternalError("the stream ended without a token");
    }
    return absl::OkStatus();
  }

  absl::Status TakeEvents(absl::Time now, RequestRecord* record) {
    size_t begin = 0;
    for (size_t end; (end = pending_.find('\n', begin)) != std::string::npos; begin = end + 1) {
      absl::string_view line(pending_.data() + begin, end - begin);
      if (!absl::ConsumePrefix(&line, "data: ")) continue;
      line = absl::StripSuffix(line, "\r");
      if (line == "[DONE]") continue;
      if (absl::Status status = TakeEvent(line, now, record); !status.ok()) return status;
    }
    pending_.erase(0, begin);
    return absl::OkStatus();
  }

  absl::Status TakeEvent(absl::string_view json, absl::Time now, RequestRecord* record) {
    simdjson::dom::element event;
    if (parser_.parse(json.data(), json.size()).get(event) != simdjson::SUCCESS) {
      return absl::InternalError("an event that is not JSON");
    }
    simdjson::dom::element part;
    if (event["error"].get(part) == simdjson::SUCCESS) {
      return absl::InternalError(absl::StrCat("the server reported ", json.substr(0, 200)));
    }
    simdjson::dom::array choices;
    if (event["choices"].get(choices) == simdjson::SUCCESS && choices.size() > 0) {
      const simdjson::dom::element choice = choices.at(0).value_unsafe();
      std::string_view text;
      const bool has_text = choice["text"].get(text) == simdjson::SUCCESS && !text.empty();
      const bool is_end = choice["finish_reason"].get(part) == simdjson::SUCCESS && !part.is_null();
      CountEvent(now, has_text, is_end, record);
    }
    simdjson::dom::object usage;
    if (event["usage"].get(usage) == simdjson::SUCCESS) {
      const auto number = [&usage](const char* name) {
        int64_t value = 0;
        return usage[name].get(value) == simdjson::SUCCESS ? static_cast<int>(value) : 0;
      };
      record->prompt_tokens = number("prompt_tokens");
      record->output_tokens = number("completion_tokens");
      int64_t cached = 0;
      if (usage["prompt_tokens_details"]["cached_tokens"].get(cached) == simdjson::SUCCESS) {
        record->cached_tokens = static_cast<int>(cached);
      }
    }
    return absl::OkStatus();
  }

  const std::string host_;
  const std::string port_;
  const std::string model_;
  DeadlineSocket socket_;
  boost::beast::flat_buffer buffer_;
  std::string pending_;
  simdjson::dom::parser parser_;
};

}  // namespace

absl::StatusOr<TargetFactory> HttpTargets(const std::string& url, const std::string& model) {
  const absl::StatusOr<HttpAddress> address = ParseHttpUrl(url);
  if (!address.ok()) return address.status();
  return TargetFactory([address = *address, model] {
    return std::make_unique<HttpTarget>(address.host, address.port, model);
  });
}

}  // namespace sluice::loadgen
