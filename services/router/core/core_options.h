// Bounds of the router's core. Every wait in it has one of these as its limit.
#pragma once

#include <string>

#include "absl/time/time.h"

namespace sluice::router {

struct CoreOptions {
  // Served model name; a worker of another model is refused. "": that of the first worker.
  std::string model;
  // Of the router <-> worker protocol; a worker that speaks another one is refused.
  std::string protocol_version;

  // Requests waiting for a place among the running ones; more are refused.
  int max_queued_requests = 1024;
  // Requests on workers at once.
  int max_running_requests = 256;
  // A request that is still queued after this long is refused.
  absl::Duration queue_timeout = absl::Seconds(30);
  // A request without an earlier deadline of its own ends after this long.
  absl::Duration request_timeout = absl::Minutes(30);

  // A worker that sends nothing for this long is lost; after half of it, it gets no new requests,
  // after a quarter only those that no other can take. Workers report every 200 ms.
  absl::Duration worker_timeout = absl::Milliseconds(1500);
  // Workers that are attached at once.
  int max_workers = 1024;

  // Plan a request anew, with the tokens its client already has, when a worker is lost or fails.
  bool recovery = true;
  // A request that lost this many workers ends with an error: it may be what kills them.
  int max_lost_workers = 2;
  // Failures reported by living workers, per request.
  int max_failures = 6;
  // Requests that start anew at once, as a share of the running ones; the others wait for a place.
  double max_retry_share = 0.2;
  // A place is held to the new attempt's first token, but no longer than this.
  absl::Duration max_retry_hold = absl::Milliseconds(500);
  // After a failed KV transfer its two workers are brought together again only when nothing else is
  // left, for this long: about the longest pause that the channel makes before it connects again.
  absl::Duration link_suspicion = absl::Seconds(2);
  // Times a decode worker may hand a request back for want of blocks.
  int max_preemptions = 32;

  // From Reserve to Grant or Busy.
  absl::Duration reserve_timeout = absl::Seconds(5);
  // All decode workers busy, or no worker ready: pauses between tries, if nothing happens meanwhile
  // that may help, and for how long in all.
  absl::Duration min_retry_pause = absl::Milliseconds(20);
  absl::Duration max_retry_pause = absl::Seconds(1);
  absl::Duration capacity_timeout = absl::Seconds(30);
  // Once a request has been refused for want of room for this long, and at once if its client has
  // tokens already, new ones stay in the queue until it got some: else many small ones would take
  // every block that becomes free. A worker that does not answer it within the same time refuses
  // nothing, and new ones go on.
  absl::Duration starvation_patience = absl::Seconds(1);
  absl::Duration no_worker_timeout = absl::Seconds(3);
  // A decode worker's tokens wait this long for the prefill worker's first one.
  absl::Duration first_token_gap_timeout = absl::Seconds(5);
  // And no more than this many of them.
  int max_held_tokens = 256;

  // Prefix affinity: block hashes remembered per worker.
  int max_prefix_blocks_per_worker = 262'144;
  // Used until a worker has reported its own.
  double default_prefill_tokens_per_second = 1000;
};

}  // namespace sluice::router
