#include "pool.h"

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

void Pool::run_job(const Job& job) {
  if (workers_.empty() || job.num_items <= 1) {
    for (int64_t item = 0; item < job.num_items; ++item) job.call(job.work, 0, item);
    return;
  }
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
