#include "tests/router_api/http_client.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace sluice::router {
namespace {
constexpr absl::Duration kPatience = absl::Seconds(10);
}  // namespace

HttpClient::HttpClient(int port, int receive_buffer_bytes) {
  fd_ = socket(AF_INET, SOCK_STREAM, 0);
  if (receive_buffer_bytes > 0) {
    setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof(receive_buffer_bytes));
  }
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    ADD_FAILURE() << "cannot connect to port " << port;
  }
}

void HttpClient::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

void HttpClient::Reset() {
  const linger now = {1, 0};
  setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
  Close();
}

void HttpClient::ShutdownSend() { shutdown(fd_, SHUT_WR); }

bool HttpClient::Send(const std::string& bytes) {
  size_t sent = 0;
  while (sent < bytes.size()) {
    const ssize_t n = send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (n <= 0) return false;
    sent += static_cast<size_t>(n);
  }
  return true;
}

void HttpClient::SendPost(const std::string& path, const std::string& json,
                          const std::string& extra_headers) {
  Send(absl::StrCat("POST ", path, " HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n",
                    extra_headers, "Content-Length: ", json.size(), "\r\n\r\n", json));
}

HttpReply HttpClient::Post(const std::string& path, const std::string& json,
                           const std::string& extra_headers) {
  SendPost(path, json, extra_headers);
  return ReadReply();
}

HttpReply HttpClient::Get(const std::string& path) {
  Send(absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: test\r\n\r\n"));
  return ReadReply();
}

bool HttpClient::Fill(absl::Time deadline) {
  pollfd poller = {fd_, POLLIN, 0};
  const int64_t wait_ms = absl::ToInt64Milliseconds(deadline - absl::Now());
  if (wait_ms <= 0 || poll(&poller, 1, static_cast<int>(wait_ms)) <= 0) return false;
  char bytes[4096];
  const ssize_t n = recv(fd_, bytes, sizeof(bytes), 0);
  if (n <= 0) return false;
  buffer_.append(bytes, static_cast<size_t>(n));
  return true;
}

bool HttpClient::ReadSome() { return Fill(absl::Now() + kPatience); }

std::string HttpClient::ReadLine() {
  const absl::Time deadline = absl::Now() + kPatience;
  size_t end;
  while ((end = buffer_.find("\r\n")) == std::string::npos) {
    if (!Fill(deadline)) return "";
  }
  std::string line = buffer_.substr(0, end);
  buffer_.erase(0, end + 2);
  return line;
}

std::string HttpClient::ReadBytes(size_t count) {
  const absl::Time deadline = absl::Now() + kPatience;
  while (buffer_.size() < count && Fill(deadline)) {
  }
  std::string bytes = buffer_.substr(0, count);
  buffer_.erase(0, bytes.size());
  if (buffer_.empty()) buffer_.shrink_to_fit();  // tests measure the server's memory
  return bytes;
}

HttpReply HttpClient::ReadHeaders() {
  HttpReply reply;
  const std::string status_line = ReadLine();
  if (status_line.rfind("HTTP/1.1 ", 0) != 0) return reply;
  reply.status = std::atoi(status_line.c_str() + 9);
  for (std::string line = ReadLine(); !line.empty(); line = ReadLine()) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) {
      ADD_FAILURE() << "bad header line: " << line;
      return reply;
    }
    reply.headers[absl::AsciiStrToLower(line.substr(0, colon))] =
        std::string(absl::StripAsciiWhitespace(line.substr(colon + 1)));
  }
  return reply;
}

std::string HttpClient::ReadChunk() {
  const std::string size_line = ReadLine();
  const size_t size = std::strtoul(size_line.c_str(), nullptr, 16);
  std::string chunk = ReadBytes(size);
  if (ReadBytes(2) != "\r\n" || chunk.size() != size) return "";
  return chunk;
}

HttpReply HttpClient::ReadReply(bool head) {
  HttpReply reply = ReadHeaders();
  if (reply.status == 100) return ReadReply(head);
  if (head || reply.status == 204) {
    reply.complete = true;
  } else if (reply.headers.count("transfer-encoding") > 0) {
    while (true) {
      const std::string size_line = ReadLine();
      if (size_line.empty()) return reply;
      const size_t size = std::strtoul(size_line.c_str(), nullptr, 16);
      const std::string chunk = ReadBytes(size);
      if (chunk.size() != size || ReadBytes(2) != "\r\n") return reply;
      if (size == 0) break;
      reply.chunks.push_back(chunk);
      reply.body += chunk;
    }
    reply.complete = true;
  } else if (reply.headers.count("content-length") > 0) {
    const size_t size = std::strtoul(reply.headers["content-length"].c_str(), nullptr, 10);
    reply.body = ReadBytes(size);
    reply.complete = reply.body.size() == size;
  } else {
    const absl::Time deadline = absl::Now() + kPatience;
    while (Fill(deadline)) {
    }
    reply.body = std::exchange(buffer_, "");
    reply.complete = true;
  }
  return reply;
}

bool HttpClient::WaitForClose(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  char bytes[65536];
  while (true) {
    pollfd poller = {fd_, POLLIN, 0};
    const int64_t wait_ms = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (wait_ms <= 0 || poll(&poller, 1, static_cast<int>(wait_ms)) <= 0) return false;
    if (recv(fd_, bytes, sizeof(bytes), 0) <= 0) return true;
  }
}

int HttpClient::local_port() const {
  sockaddr_in address = {};
  socklen_t size = sizeof(address);
  if (getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size) != 0) return 0;
  return ntohs(address.sin_port);
}

std::vector<std::string> EventsOf(const std::string& body) {
  std::vector<std::string> events;
  size_t at = 0;
  while (at < body.size()) {
    const size_t end = body.find("\n\n", at);
    if (body.compare(at, 6, "data: ") != 0 || end == std::string::npos) {
      ADD_FAILURE() << "not an event: " << body.substr(at, 200);
      return events;
    }
    events.push_back(body.substr(at + 6, end - at - 6));
    at = end + 2;
  }
  return events;
}

}  // namespace sluice::router
