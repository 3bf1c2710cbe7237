// The search for 16 groups at a time, one a lane, for the compiler to vectorize with the instructions of the file that
// includes it: what belongs to a group is added in a tree of halves, and no lane meets another.

constexpr int kLanes = 16;
constexpr float kMinMagnitude = 0x1p-100f;
constexpr float kToInteger = 0x1.8p23f;  // adding and subtracting it rounds |x| < 2^22 to an integer, ties to even

struct alignas(64) Lanes {
  float at[kLanes];
};

inline float rounded(float value, float low, float high) {
  const float integer = (value + kToInteger) - kToInteger;
  const float above = integer < low ? low : integer;
  return above > high ? high : above;
}

inline float squared_error(float unit, float scale, float inverse, float low, float high) {
  const float error = rounded(unit * inverse, low, high) * scale - unit;
  return error * error;
}

// unit: [kGroup] lanes, within [-1, 1].
template <int kGroup>
Lanes squared_errors(const Lanes* unit, const Lanes& scale, float low, float high) {
  Lanes inverse, sums[kGroup / 2];
  for (int lane = 0; lane < kLanes; ++lane) inverse.at[lane] = 1.0f / scale.at[lane];
  for (int i = 0; i < kGroup / 2; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float s = scale.at[lane], inv = inverse.at[lane];
      sums[i].at[lane] = squared_error(unit[i].at[lane], s, inv, low, high) +
                         squared_error(unit[i + kGroup / 2].at[lane], s, inv, low, high);
    }
  }
  for (int half = kGroup / 4; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      for (int lane = 0; lane < kLanes; ++lane) sums[i].at[lane] += sums[i + half].at[lane];
    }
  }
  return sums[0];
}

// Of the grid's scales the one with the smallest error, of those the one tried first.
template <int kGroup>
Lanes best_scales(const Lanes* unit, const Lanes& amax, const Grid& grid) {
  const float low = static_cast<float>(grid.low), high = static_cast<float>(grid.high);
  const int shift = 24 - grid.scale_bits;
  Lanes best, best_error, scale;
  int32_t first[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    first[lane] = (std::bit_cast<int32_t>(amax.at[lane] / high) + ((1 << shift) - 1)) >> shift;
    best.at[lane] = 1.0f;
    best_error.at[lane] = std::numeric_limits<float>::infinity();
  }
  for (int step = 0; step < grid.num_steps; ++step) {
    for (int sign = 0; sign <= (grid.is_signed ? 1 : 0); ++sign) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const float size = std::bit_cast<float>((first[lane] - step) << shift);
        scale.at[lane] = sign ? -size : size;
      }
      const Lanes error = squared_errors<kGroup>(unit, scale, low, high);
      for (int lane = 0; lane < kLanes; ++lane) {
        const bool is_better = error.at[lane] < best_error.at[lane];
        best_error.at[lane] = is_better ? error.at[lane] : best_error.at[lane];
        best.at[lane] = is_better ? scale.at[lane] : best.at[lane];
      }
    }
  }
  return best;
}

// One group of a matrix: its columns and where its numbers go. A last group of a row may be ragged.
struct Group {
  const float* from;
  int64_t count;
  int8_t* codes;
  float* scale;
};

template <int kGroup>
void quantize_lanes(const Group* groups, int num_groups, const Grid& grid) {
  Lanes unit[kGroup] = {}, amax = {};
  int exponent[kLanes] = {};
  for (int lane = 0; lane < num_groups; ++lane) {
    const Group& group = groups[lane];
    float largest = 0.0f;
    for (int64_t i = 0; i < group.count; ++i) largest = std::max(largest, std::fabs(group.from[i]));
    if (largest < kMinMagnitude) continue;  // a lane of zeros
    amax.at[lane] = std::frexp(largest, &exponent[lane]);
    const float down = std::ldexp(1.0f, -exponent[lane]);
    for (int64_t i = 0; i < group.count; ++i) unit[i].at[lane] = group.from[i] * down;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (amax.at[lane] == 0.0f) amax.at[lane] = 1.0f;  // its scales are tried and thrown away
  }
  const Lanes best = best_scales<kGroup>(unit, amax, grid);
  const float low = static_cast<float>(grid.low), high = static_cast<float>(grid.high);
  for (int lane = 0; lane < num_groups; ++lane) {
    const Group& group = groups[lane];
    const float inverse = 1.0f / best.at[lane];
    float any = 0.0f;
    for (int64_t i = 0; i < group.count; ++i) {
      any = std::max(any, std::fabs(unit[i].at[lane]));
      group.codes[i] = static_cast<int8_t>(static_cast<int32_t>(rounded(unit[i].at[lane] * inverse, low, high)));
    }
    *group.scale = any > 0.0f ? std::ldexp(best.at[lane], exponent[lane]) : 1.0f;
  }
}

template <int kGroup>
void quantize_rows(const QuantizeArgs& args) {
  Group groups[kLanes];
  int num_groups = 0;
  float* scale = args.scales;
  for (int64_t row = 0; row < args.rows; ++row) {
    for (int64_t column = 0; column < args.columns; column += kGroup) {
      const int64_t at = row * args.columns + column;
      groups[num_groups++] = {args.weight + at, std::min<int64_t>(kGroup, args.columns - column), args.codes + at, scale++};
      if (num_groups == kLanes) {
        quantize_lanes<kGroup>(groups, num_groups, args.grid);
        num_groups = 0;
      }
    }
  }
  quantize_lanes<kGroup>(groups, num_groups, args.grid);
}

inline void quantize_all(const QuantizeArgs& args) {
  if (args.group == 32) {
    quantize_rows<32>(args);
  } else {
    quantize_rows<128>(args);
  }
}
