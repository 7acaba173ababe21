// Attention of one query a row over paged KV, on a CPU.
//
// Rows and KV heads are independent tasks, so that a row's result does not depend on the rows beside it. A task walks
// the blocks of its row once with an online softmax (Milakov and Gimelshein, 2018; Dao et al., 2022): scores of up to
// LANES positions at a time, largest score so far, sum of weights and weighted values so far, all in float32. The heads
// of a group share every load of a key or value.
//
// The file is read several times by one compilation. The outer reading is the operation; each inner one (ISA defined)
// is the task for one instruction set, made by `#pragma GCC target`. Which one runs is chosen at run time.

#ifndef ISA

#include <ATen/core/Tensor.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

constexpr int MAX_HEAD_DIM = 256;
constexpr int CACHE_LINE_BYTES = 64;
constexpr int MAX_GROUP = 4;  // heads that one walk serves; larger groups take several

// One KV head of one row. Strides count elements; `keys` and `values` are those of block 0.
struct Task {
  const void* query;  // [group, head dim]
  const void* keys;
  const void* values;
  void* out;  // [group, head dim]
  const int64_t* table;
  int64_t context, block_tokens, block_stride, head_dim;
  float scale;
};

// Elements from block 0 to a position.
inline int64_t offset_of(const Task& task, int64_t position) {
  return task.table[position / task.block_tokens] * task.block_stride +
         position % task.block_tokens * task.head_dim;
}

inline float widen(float value) { return value; }
inline float widen(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}
inline void narrow(float value, float* out) { *out = value; }
inline void narrow(float value, uint16_t* out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const bool not_a_number = (bits & 0x7fffffffu) > 0x7f800000u;
  *out = not_a_number ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to even
}

}  // namespace

#define ISA plain
#define LANES 4
#include __FILE__
#undef ISA
#undef LANES

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define TRIPTYCH_X86 1
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define ISA avx2
#define LANES 8
#include __FILE__
#undef ISA
#undef LANES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define ISA avx512
#define LANES 16
#include __FILE__
#undef ISA
#undef LANES
#pragma GCC pop_options
#endif

namespace {

using Walk = void (*)(const Task&, int64_t group);

// Instruction sets by number: 0 plain, 1 AVX2, 2 AVX-512.
int64_t best_isa() {
#ifdef TRIPTYCH_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
    return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

template <class T>
Walk walk_of(int64_t isa) {
#ifdef TRIPTYCH_X86
  if (isa == 2) return avx512::walk<T>;
  if (isa == 1) return avx2::walk<T>;
#endif
  return plain::walk<T>;
}

// q, out: [tokens, heads, head dim]; q may have any stride between tokens.  kv: [blocks, 2, kv heads, block tokens,
// head dim], any strides in front of the last two.  tokens, contexts: [rows]; table: [rows, blocks of the longest].
// isa: at most this instruction set.
void paged_attention(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& tokens, const at::Tensor& table,
                     const at::Tensor& contexts, double scale, int64_t isa, at::Tensor& out) {
  TORCH_CHECK(q.dim() == 3 && kv.dim() == 5 && table.dim() == 2 && out.sizes() == q.sizes(), "paged_attention: shapes");
  const int64_t heads = q.size(1), head_dim = q.size(2), kv_heads = kv.size(2), rows = tokens.numel();
  const int64_t block_tokens = kv.size(3), group = heads / kv_heads, bytes = q.element_size();
  const bool wide = q.scalar_type() == at::kFloat;
  TORCH_CHECK(wide || q.scalar_type() == at::kBFloat16, "paged_attention: element type");
  TORCH_CHECK(kv.scalar_type() == q.scalar_type() && out.scalar_type() == q.scalar_type(), "paged_attention: types");
  TORCH_CHECK(head_dim % 16 == 0 && head_dim <= MAX_HEAD_DIM && heads % kv_heads == 0 && kv.size(1) == 2 &&
                  kv.size(4) == head_dim, "paged_attention: heads");
  TORCH_CHECK(q.stride(2) == 1 && q.stride(1) == head_dim && out.is_contiguous() && table.is_contiguous() &&
                  contexts.is_contiguous() && kv.stride(4) == 1 && kv.stride(3) == head_dim, "paged_attention: strides");
  TORCH_CHECK(tokens.is_contiguous() && tokens.scalar_type() == at::kLong && table.scalar_type() == at::kLong &&
                  contexts.scalar_type() == at::kLong && table.size(0) == rows && contexts.numel() == rows,
              "paged_attention: rows");
  const int64_t *token = tokens.const_data_ptr<int64_t>(), *context = contexts.const_data_ptr<int64_t>();
  const int64_t* blocks = table.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < rows; ++row) {  // cheap beside the walk, and a bad number must not read foreign memory
    const int64_t used = (context[row] + block_tokens - 1) / block_tokens;
    TORCH_CHECK(token[row] >= 0 && token[row] < q.size(0) && context[row] > 0 && used <= table.size(1),
                "paged_attention: a row out of bounds");
    for (int64_t at = 0; at < used; ++at) {
      const int64_t block = blocks[row * table.size(1) + at];
      TORCH_CHECK(block >= 0 && block < kv.size(0), "paged_attention: a block out of bounds");
    }
  }
  const Walk walk = wide ? walk_of<float>(std::min(isa, best_isa())) : walk_of<uint16_t>(std::min(isa, best_isa()));
  const auto* queries = static_cast<const char*>(q.const_data_ptr());
  const auto* keys = static_cast<const char*>(kv.const_data_ptr());
  auto* outs = static_cast<char*>(out.mutable_data_ptr());
  at::parallel_for(0, rows * kv_heads, 1, [&](int64_t first, int64_t end) {
    for (int64_t index = first; index < end; ++index) {
      const int64_t row = index / kv_heads, head = index % kv_heads;
      const char* own_keys = keys + head * kv.stride(2) * bytes;
      Task task{queries + (token[row] * q.stride(0) + head * group * head_dim) * bytes,
                own_keys,
                own_keys + kv.stride(1) * bytes,
                outs + (token[row] * heads + head * group) * head_dim * bytes,
                blocks + row * table.size(1),
                context[row],
                block_tokens,
                kv.stride(0),
                head_dim,
                static_cast<float>(scale)};
      walk(task, group);
    }
  });
}

}  // namespace

TORCH_LIBRARY(triptych, library) {
  library.def(
      "paged_attention(Tensor q, Tensor kv, Tensor tokens, Tensor table, Tensor contexts, float scale, int isa, "
      "Tensor(a!) out) -> ()");
  library.def("best_isa() -> int", best_isa);
}

TORCH_LIBRARY_IMPL(triptych, CPU, library) { library.impl("paged_attention", paged_attention); }

#else  // one instruction set: vectors of LANES floats

namespace ISA {
namespace {

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline Floats load(const uint16_t* from) {  // bfloat16 is the upper half of a float32
  Halves bits;
  std::memcpy(&bits, from, sizeof bits);
  return (Floats)(__builtin_convertvector(bits, Words) << 16);
}

// e to the power of `x` for x <= 0: 2 to the whole part by its exponent bits, Taylor's series for the rest.
inline Floats exp_of(Floats x) {
  const Floats none = {};
  x = x < -87.0f ? none - 87.0f : x;  // nothing beside the largest weight, which is 1
  const Floats turns = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds, the whole part in the low bits
  const Ints whole = (Ints)turns - 0x4b400000;
  const Floats rest = x - (turns - 12582912.0f) * 0.693359375f + (turns - 12582912.0f) * 2.12194440e-4f;
  Floats sum = none + 1.0f / 5040;
  sum = sum * rest + 1.0f / 720;
  sum = sum * rest + 1.0f / 120;
  sum = sum * rest + 1.0f / 24;
  sum = sum * rest + 1.0f / 6;
  sum = sum * rest + 0.5f;
  sum = sum * rest + 1.0f;
  sum = sum * rest + 1.0f;
  return sum * (Floats)((whole + 127) << 23);
}

// Lanes to take from two vectors of LANES, so that adding what `low` and `high` take halves the number of vectors.
struct Lanes {
  int32_t low[LANES], high[LANES];
};

constexpr Lanes lanes_of(int half) {
  Lanes lanes{};
  for (int lane = 0; lane < LANES; ++lane) {
    lanes.low[lane] = lane % half + lane / half % 2 * LANES + lane / (2 * half) * 2 * half;
    lanes.high[lane] = lanes.low[lane] + half;
  }
  return lanes;
}

// Sums of LANES vectors, the sum of vector i in lane i.
template <int HALF = LANES / 2>
inline Floats sums_of(Floats* parts) {
  static constexpr Lanes lanes = lanes_of(HALF);
  Ints low, high;
  std::memcpy(&low, lanes.low, sizeof low);
  std::memcpy(&high, lanes.high, sizeof high);
  for (int index = 0; index < HALF; ++index) {
    const Floats left = parts[index], right = parts[index + HALF];
    parts[index] = __builtin_shuffle(left, right, low) + __builtin_shuffle(left, right, high);
  }
  if constexpr (HALF > 1) return sums_of<HALF / 2>(parts);
  return parts[0];
}

// The largest of all lanes.
inline float largest_of(Floats values) {
  float lanes[LANES];
  std::memcpy(lanes, &values, sizeof lanes);
#pragma GCC unroll 4
  for (int half = LANES / 2; half; half /= 2)
    for (int lane = 0; lane < half; ++lane)
      lanes[lane] = lanes[lane] < lanes[lane + half] ? lanes[lane + half] : lanes[lane];
  return lanes[0];
}

template <class T, int GROUP>
void walk_group(const Task& task, int64_t first_head) {
  const int64_t dim = task.head_dim;
  const T* query = static_cast<const T*>(task.query) + first_head * dim;
  float queries[GROUP][MAX_HEAD_DIM], mixed[GROUP][MAX_HEAD_DIM] = {}, largest[GROUP];
  Floats totals[GROUP] = {};
  for (int head = 0; head < GROUP; ++head) {
    largest[head] = -__builtin_inff();
    for (int64_t at = 0; at < dim; ++at) queries[head][at] = widen(query[head * dim + at]) * task.scale;
  }
  for (int64_t position = 0; position < task.context;) {
    const int64_t offset = offset_of(task, position);
    const int64_t left = std::min(task.block_tokens - position % task.block_tokens, task.context - position);
    const int count = static_cast<int>(std::min<int64_t>(LANES, left));
    const T* keys = static_cast<const T*>(task.keys) + offset;
    const T* values = static_cast<const T*>(task.values) + offset;
    const int64_t next = position + count < task.context ? offset_of(task, position + count) : offset;
    Floats parts[GROUP][LANES] = {};
    for (int token = 0; token < count; ++token) {  // slots past the context are never read
      for (int64_t at = 0; at < dim; at += CACHE_LINE_BYTES / static_cast<int64_t>(sizeof(T))) {
        __builtin_prefetch(static_cast<const T*>(task.keys) + next + token * dim + at);
        __builtin_prefetch(static_cast<const T*>(task.values) + next + token * dim + at);
      }
      Floats dots[GROUP] = {};
      for (int64_t at = 0; at < dim; at += LANES) {
        const Floats key = load(keys + token * dim + at);
        for (int head = 0; head < GROUP; ++head) dots[head] += load(queries[head] + at) * key;
      }
      for (int head = 0; head < GROUP; ++head) parts[head][token] = dots[head];
    }
    float weights[GROUP][LANES], fade[GROUP];
    for (int head = 0; head < GROUP; ++head) {
      float scores[LANES];
      const Floats sums = sums_of(parts[head]);
      std::memcpy(scores, &sums, sizeof scores);
      for (int token = count; token < LANES; ++token) scores[token] = -__builtin_inff();
      const float most = std::max(largest[head], largest_of(load(scores)));
      fade[head] = most == largest[head] ? 1.0f : __builtin_expf(largest[head] - most);
      largest[head] = most;
      const Floats weight = exp_of(load(scores) - most);
      totals[head] = totals[head] * fade[head] + weight;
      std::memcpy(weights[head], &weight, sizeof weight);
    }
    for (int64_t at = 0; at < dim; at += LANES) {
      Floats sum[GROUP];
      for (int head = 0; head < GROUP; ++head) sum[head] = load(mixed[head] + at) * fade[head];
      for (int token = 0; token < count; ++token) {
        const Floats value = load(values + token * dim + at);
        for (int head = 0; head < GROUP; ++head) sum[head] += weights[head][token] * value;
      }
      for (int head = 0; head < GROUP; ++head) std::memcpy(mixed[head] + at, &sum[head], sizeof sum[head]);
    }
    position += count;
  }
  T* out = static_cast<T*>(task.out) + first_head * dim;
  for (int head = 0; head < GROUP; ++head) {
    float total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += totals[head][lane];
    for (int64_t at = 0; at < dim; ++at) narrow(mixed[head][at] / total, out + head * dim + at);
  }
}

template <class T>
void walk(const Task& task, int64_t group) {
  int64_t head = 0;
  for (; group - head >= MAX_GROUP; head += MAX_GROUP) walk_group<T, MAX_GROUP>(task, head);
  if (group - head == 3) walk_group<T, 3>(task, head);
  if (group - head == 2) walk_group<T, 2>(task, head);
  if (group - head == 1) walk_group<T, 1>(task, head);
}

}  // namespace
}  // namespace ISA

#endif
