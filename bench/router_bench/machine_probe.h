// What the machine itself can do at this moment, printed beside the figures: shared machines change
// from second to second. Each takes some 10 ms. Any thread.
#pragma once

namespace sluice::bench {

// Of one x86 core, from a chain of multiplications that need each other; 0 elsewhere.
double ClockGigahertz();

// Median one-way time between two threads over loopback TCP, the receiver asleep in epoll.
double LoopbackMicroseconds();

}  // namespace sluice::bench
