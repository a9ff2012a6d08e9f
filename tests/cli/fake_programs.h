// A folder with stand-ins for Sluice's programs (fake_program.py). Test code only.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace sluice::cli {

class FakePrograms {
 public:
  explicit FakePrograms(const std::string& behaviour = "") {
    std::string pattern = (std::filesystem::temp_directory_path() / "sluice-cli-XXXXXX").string();
    dir_ = mkdtemp(pattern.data());
    for (const char* name : {"sluice-router", "sluice-prefill-worker", "sluice-decode-worker"}) {
      std::filesystem::create_symlink(std::string(SLUICE_SOURCE_DIR) + "/tests/cli/fake_program.py",
                                      dir_ + "/" + name);
    }
    setenv("FAKE_EVENTS", events_path().c_str(), 1);
    setenv("FAKE_BEHAVIOUR", behaviour.c_str(), 1);
  }
  ~FakePrograms() { std::filesystem::remove_all(dir_); }

  const std::string& dir() const { return dir_; }
  std::string run_dir() const { return dir_ + "/run"; }
  std::string events_path() const { return dir_ + "/events"; }

  // Now those with the behaviour die-later or die-once do.
  void LetDie() const { std::ofstream(events_path() + ".die") << "now"; }

  struct Event {
    std::string name;
    std::string what;
    int pid = 0;
  };
  std::vector<Event> Events() const {
    std::ifstream file(events_path());
    std::vector<Event> events;
    for (Event event; file >> event.name >> event.what >> event.pid;) events.push_back(event);
    return events;
  }
  // Position of an event, or -1.
  int Find(const std::string& name, const std::string& what) const {
    const std::vector<Event> events = Events();
    for (size_t i = 0; i < events.size(); ++i) {
      if (events[i].name == name && events[i].what == what) return static_cast<int>(i);
    }
    return -1;
  }

 private:
  std::string dir_;
};

}  // namespace sluice::cli
