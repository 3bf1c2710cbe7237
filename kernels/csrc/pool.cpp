#include "pool.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace shoal {

Pool::Pool(int num_threads) {
  for (int thread = 1; thread < num_threads; ++thread) workers_.emplace_back([this, thread] { serve(thread); });
}

Pool::~Pool() {
  {
    const std::lock_guard lock(mutex_);
    is_stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

// Linux wakes a thread on its waker's processor or where it last slept, and may leave it queued there behind the caller
// while another processor idles: measured, calls of 1.3 ms took 2.4. So workers may run anywhere but where the caller
// runs; one system call per worker, only when the caller has moved.
void Pool::keep_off_callers_cpu() {
#if defined(__linux__)
  const int cpu = sched_getcpu();
  if (cpu == callers_cpu_) return;
  callers_cpu_ = cpu;
  cpu_set_t others;
  if (cpu < 0 || sched_getaffinity(0, sizeof others, &others) != 0) return;  // what the process may use
  CPU_CLR(cpu, &others);
  if (CPU_COUNT(&others) == 0) return;
  for (std::thread& worker : workers_) pthread_setaffinity_np(worker.native_handle(), sizeof others, &others);
#endif
}

void Pool::run_job(const Job& job) {
  if (workers_.empty() || job.num_items <= 1) {
    for (int64_t item = 0; item < job.num_items; ++item) job.call(job.work, 0, item);
    return;
  }
  keep_off_callers_cpu();
  {
    const std::lock_guard lock(mutex_);
    job_ = job;
    next_item_.store(0, std::memory_order_relaxed);
    is_open_ = true;
    ++job_number_;
  }
  wake_.notify_all();
  take_items(0);
  std::unique_lock lock(mutex_);
  is_open_ = false;
  idle_.wait(lock, [this] { return num_inside_ == 0; });
}

void Pool::take_items(int thread) {
  for (int64_t item; (item = next_item_.fetch_add(1, std::memory_order_relaxed)) < job_.num_items;) {
    job_.call(job_.work, thread, item);
  }
}

void Pool::serve(int thread) {
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [&] { return is_stopping_ || job_number_ != seen; });
    if (is_stopping_) return;
    seen = job_number_;
    if (!is_open_) continue;
    ++num_inside_;
    lock.unlock();
    take_items(thread);
    lock.lock();
    if (--num_inside_ == 0) idle_.notify_one();
  }
}

}  // namespace shoal
