// Which rows belong to an id, and which to a piece of a frequent one: arithmetic over `order`, the text rows sorted by token id.
//
// An id with at least 2 kPieceRows rows is cut into pieces of kPieceRows, counted from its own first row; the last takes the rest. Pieces start at least
// kPieceRows places apart, so place / kPieceRows is a slot of its own for each: no table of pieces is needed, and what an id's rows add up to
// doesn't depend on the other ids. The numbers are those of kernels/splice_bwd.py.
#pragma once

#include "common/cuda.cuh"

namespace lmm::splice {

constexpr int kPieceRows = 64;
constexpr int32_t kBehind = INT32_MAX;  // sorts after every id

struct Piece {
    int32_t begin, end;  // places of the order; equal: none
};

struct Order {
    const int32_t* source;  // token of each packed row
    const int32_t* order;   // row of each place, -1 after the last
    int32_t places;

    __host__ __device__ int32_t token(int32_t place) const {
        const int32_t row = order[place];
        return row < 0 ? kBehind : source[row];
    }

    // How many places hold a smaller id.
    __host__ __device__ int32_t first_place(int32_t id) const {
        int32_t low = 0, high = places;
        while (low < high) {
            const int32_t middle = low + (high - low) / 2;
            if (token(middle) < id) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low;
    }

    // Whether a piece can start in places [first, first + kPieceRows): three reads instead of four searches for most. A piece of the run that holds
    // `first` covers the slot's last place too. A run that begins later and has two pieces reaches from the slot's last place past the next slot.
    __host__ __device__ bool may_start_piece(int32_t first) const {
        const int32_t last = first + kPieceRows - 1, beyond = first + 2 * kPieceRows;
        if (last >= places) return false;
        const int32_t token_of_last = token(last);
        if (token_of_last == kBehind) return false;
        return token(first) == token_of_last || (beyond < places && token(beyond) == token_of_last);
    }

    // Token whose run holds lane 0's and 1's place (`first`), or lane 2's and 3's (the slot's last); odd lanes ask for the run's end.
    __host__ __device__ int32_t searched_id(int32_t first, int32_t lane) const {
        const int32_t last = (first + kPieceRows < places ? first + kPieceRows : places) - 1;
        const int32_t found = token(lane & 2 ? last : first);
        return (found < kBehind ? found : kBehind - 1) + (lane & 1);
    }
};

// The piece that starts in places [first, first + kPieceRows), if one does: of run A, which holds `first`, or of run B, which holds the slot's last place.
constexpr __host__ __device__ Piece piece_in_slot(int32_t first, int32_t begin_a, int32_t end_a, int32_t begin_b, int32_t end_b) {
    const int32_t piece = (first - begin_a + kPieceRows - 1) / kPieceRows, pieces = (end_a - begin_a) / kPieceRows;
    if (pieces >= 2 && piece < pieces) {
        const int32_t begin = begin_a + piece * kPieceRows;
        return {begin, piece == pieces - 1 ? end_a : begin + kPieceRows};
    }
    if (begin_b > first && end_b - begin_b >= 2 * kPieceRows) return {begin_b, begin_b + kPieceRows};
    return {first, first};
}

// How many pieces an id of so many rows has; 0 where its rows are added directly.
constexpr __host__ __device__ int32_t pieces_of(int32_t rows) {
    return rows >= 2 * kPieceRows ? rows / kPieceRows : 0;
}

}  // namespace lmm::splice
