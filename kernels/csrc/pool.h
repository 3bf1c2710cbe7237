// Threads that sleep when there is nothing to do: a volunteer's computer stays usable. No spinning, ever.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace shoal {

class Pool {
 public:
  // num_threads counts the caller, who works too.
  explicit Pool(int num_threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls work(thread, item) for every item of 0..num_items-1, each once, and returns when all are done. Items are taken in
  // ascending order by whoever is free. A worker that wakes late finds the job closed and is not waited for, so that a
  // busy machine's scheduler costs speed, not a stall. `work` must not throw. One call at a time.
  template <class Work>
  void run(int64_t num_items, const Work& work) {
    run_job({[](const void* w, int thread, int64_t item) { (*static_cast<const Work*>(w))(thread, item); }, &work,
             num_items});
  }

 private:
  struct Job {
    void (*call)(const void* work, int thread, int64_t item);
    const void* work;
    int64_t num_items;
  };

  void run_job(const Job& job);
  void keep_off_callers_cpu();
  void take_items(int thread);
  void serve(int thread);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  Job job_{};
  std::atomic<int64_t> next_item_{0};
  uint64_t job_number_ = 0;
  int num_inside_ = 0;
  int callers_cpu_ = -1;
  bool is_open_ = false, is_stopping_ = false;
};

}  // namespace shoal
