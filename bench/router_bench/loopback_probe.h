// What a wake-up over the network costs on this machine at this moment, printed beside the figures:
// a token passes through the router by several of them. Takes about 100 ms. Any thread.
#pragma once

namespace sluice::bench {

// Median one-way time between two threads over loopback TCP, the receiver asleep in epoll; 0 when
// it cannot be measured.
double LoopbackMicroseconds();

}  // namespace sluice::bench
