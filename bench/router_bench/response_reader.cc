#include "bench/router_bench/response_reader.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"

namespace sluice::bench {
namespace {

constexpr absl::string_view kCrLf = "\r\n";
constexpr absl::string_view kStatusStart = "HTTP/1.1 ";

// The value of a header as this router spells it; "" without one.
absl::string_view HeaderValue(absl::string_view head, absl::string_view name) {
  const size_t at = head.find(name);
  if (at == absl::string_view::npos) return "";
  head.remove_prefix(at + name.size());
  return head.substr(0, head.find(kCrLf));
}

}  // namespace

bool ResponseReader::Read(absl::string_view bytes, Listener* listener) {
  absl::string_view input = bytes;
  if (!rest_.empty()) {
    rest_.append(bytes.data(), bytes.size());
    input = rest_;
  }
  while (!input.empty()) {
    const Outcome outcome = ReadOne(&input, listener);
    if (outcome == Outcome::kMalformed) return false;
    if (outcome == Outcome::kNeedMore) break;
  }
  rest_ = std::string(input);
  return true;
}

ResponseReader::Outcome ResponseReader::ReadOne(absl::string_view* input, Listener* listener) {
  switch (state_) {
    case State::kHead:
      return ReadHead(input);
    case State::kBody:
      if (input->size() < size_bytes_) return Outcome::kNeedMore;
      listener->OnBody(input->substr(0, size_bytes_));
      input->remove_prefix(size_bytes_);
      state_ = State::kHead;
      listener->OnEnd(status_);
      return Outcome::kTaken;
    case State::kChunkSize: {
      const size_t end = input->find(kCrLf);
      if (end == absl::string_view::npos) return Outcome::kNeedMore;
      if (!absl::SimpleHexAtoi(input->substr(0, end), &size_bytes_)) return Outcome::kMalformed;
      input->remove_prefix(end + kCrLf.size());
      state_ = State::kChunk;
      return Outcome::kTaken;
    }
    case State::kChunk: {
      if (input->size() < size_bytes_ + kCrLf.size()) return Outcome::kNeedMore;
      const absl::string_view chunk = input->substr(0, size_bytes_);
      input->remove_prefix(size_bytes_ + kCrLf.size());
      state_ = chunk.empty() ? State::kHead : State::kChunkSize;
      if (chunk.empty()) {
        listener->OnEnd(status_);
      } else {
        listener->OnBody(chunk);
      }
      return Outcome::kTaken;
    }
  }
  return Outcome::kMalformed;
}

ResponseReader::Outcome ResponseReader::ReadHead(absl::string_view* input) {
  const size_t end = input->find("\r\n\r\n");
  if (end == absl::string_view::npos) return Outcome::kNeedMore;
  const absl::string_view head = input->substr(0, end + kCrLf.size());
  if (!absl::StartsWith(head, kStatusStart) ||
      !absl::SimpleAtoi(head.substr(kStatusStart.size(), 3), &status_)) {
    return Outcome::kMalformed;
  }
  input->remove_prefix(end + 2 * kCrLf.size());
  const absl::string_view length = HeaderValue(head, "\r\nContent-Length: ");
  if (length.empty()) {
    state_ = State::kChunkSize;
    return Outcome::kTaken;
  }
  if (!absl::SimpleAtoi(length, &size_bytes_)) return Outcome::kMalformed;
  state_ = State::kBody;
  return Outcome::kTaken;
}

}  // namespace sluice::bench
