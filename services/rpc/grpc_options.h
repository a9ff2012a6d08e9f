// How every gRPC channel and server between our own processes is set up: limits, keepalive,
// credentials. One place, so that both ends agree and TLS has one place to go. Any thread.
//
// Traffic is plaintext: these ports belong on loopback or on an isolated network.
#pragma once

#include <memory>
#include <string>

namespace grpc {
class Channel;
class ServerBuilder;
}  // namespace grpc

namespace sluice::rpc {

// Largest message in either direction. A million tokens of five-byte varints fit ten times.
inline constexpr int kMaxMessageBytes = 64 << 20;

// A channel of its own (no connection shared with other channels) to "host:port". gRPC's own
// reconnection is kept out of the way: callers that retry make a new channel and time it
// themselves.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);

// Adds a listening port to `builder` and sets limits. `*bound_port` is filled by BuildAndStart: 0
// when the address is in use.
void ConfigureServer(grpc::ServerBuilder* builder, const std::string& host, int port,
                     int* bound_port);

}  // namespace sluice::rpc
