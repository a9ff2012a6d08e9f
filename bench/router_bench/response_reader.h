// Reads the router's answers off one connection: status line, then a body by Content-Length or
// chunks. One connection's thread.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace sluice::bench {

class ResponseReader {
 public:
  class Listener {
   public:
    virtual ~Listener() = default;
    // A whole body, or one chunk of one: with this router, one server-sent event.
    virtual void OnBody(absl::string_view body) = 0;
    virtual void OnEnd(int status) = 0;
  };

  // False: the bytes are not HTTP as the router writes it.
  bool Read(absl::string_view bytes, Listener* listener);

 private:
  enum class State { kHead, kBody, kChunkSize, kChunk };

  // Takes one element off `input`; kNeedMore leaves it alone.
  enum class Outcome { kTaken, kNeedMore, kMalformed };
  Outcome ReadOne(absl::string_view* input, Listener* listener);
  Outcome ReadHead(absl::string_view* input);

  State state_ = State::kHead;
  int status_ = 0;
  size_t size_bytes_ = 0;  // of the body or chunk
  std::string rest_;       // an element that is not complete
};

}  // namespace sluice::bench
