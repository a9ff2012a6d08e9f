// A blocking HTTP/1.1 client over a raw socket: tests see every byte the server sends and may send
// anything. Every wait ends after 10 s.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace sluice::router {

struct HttpReply {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // chunks joined
  std::vector<std::string> chunks;             // of a chunked body
  bool complete = false;                       // false: the connection ended before
};

class HttpClient {
 public:
  // `receive_buffer_bytes` 0: the kernel's default.
  explicit HttpClient(int port, int receive_buffer_bytes = 0);
  ~HttpClient() { Close(); }
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // False once the peer has closed.
  bool Send(const std::string& bytes);
  HttpReply Post(const std::string& path, const std::string& json,
                 const std::string& extra_headers = "");
  HttpReply Get(const std::string& path);
  void SendPost(const std::string& path, const std::string& json,
                const std::string& extra_headers = "");

  HttpReply ReadReply(bool head = false);
  // The header block only; the body stays to be read.
  HttpReply ReadHeaders();
  // The next chunk of a chunked body; "" at its end or when the connection ended.
  std::string ReadChunk();
  // Takes some more bytes, 4 KiB at most, which the other reads then begin with; false when none
  // came.
  bool ReadSome();
  // True when the peer closes (or resets) within `timeout`; what it sends meanwhile is dropped.
  bool WaitForClose(absl::Duration timeout);
  // The port of our own end; 0 when there is none.
  int local_port() const;
  void ShutdownSend();
  void Close();
  // Sends a reset instead of a FIN.
  void Reset();

 private:
  bool Fill(absl::Time deadline);  // at least one more byte
  std::string ReadLine();
  std::string ReadBytes(size_t count);

  int fd_ = -1;
  std::string buffer_;
};

// The payloads of an event stream's body; fails the test on anything that is not "data: ...\n\n".
std::vector<std::string> EventsOf(const std::string& body);

}  // namespace sluice::router
