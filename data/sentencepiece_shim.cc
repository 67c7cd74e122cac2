// The only C++ of Weft's core job: it calls SentencePiece and turns its exceptions and statuses into return
// codes.
#include "data/sentencepiece_shim.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

struct wf_sp {
  sentencepiece::SentencePieceProcessor processor;
};

namespace {

int fail(wf_sp_error *error, const char *text) {
  std::strncpy(error->text, text, sizeof error->text - 1);
  error->text[sizeof error->text - 1] = '\0';
  return -1;
}

// Run `body`, which returns a status.
template <class Body> int guarded(wf_sp_error *error, Body body) {
  try {
    sentencepiece::util::Status status = body();
    return status.ok() ? 0 : fail(error, status.ToString().c_str());
  } catch (const std::exception &e) {
    return fail(error, e.what());
  } catch (...) {
    return fail(error, "unknown failure");
  }
}

void *copy(const void *from, size_t bytes) {
  void *p = std::malloc(bytes ? bytes : 1);
  if (!p) throw std::bad_alloc();
  if (bytes) std::memcpy(p, from, bytes);
  return p;
}

class Sentences : public sentencepiece::SentenceIterator {
public:
  Sentences(wf_sp_next next, void *context) : next_(next), context_(context) { Next(); }
  bool done() const override { return state_ <= 0; }
  void Next() override {
    const char *text = nullptr;
    size_t n = 0;
    state_ = next_(context_, &text, &n);
    if (state_ > 0) value_.assign(text, n);
  }
  const std::string &value() const override { return value_; }
  sentencepiece::util::Status status() const override {
    if (state_ >= 0) return sentencepiece::util::Status();
    return sentencepiece::util::Status(sentencepiece::util::StatusCode::kInternal,
                                       "the text could not be read");
  }

private:
  wf_sp_next next_;
  void *context_;
  int state_ = 0;
  std::string value_;
};

} // namespace

void wf_sp_release(void *p) {
  std::free(p);
}

wf_sp *wf_sp_load(const char *model, size_t n, wf_sp_error *error) {
  wf_sp *sp = nullptr;
  if (guarded(error, [&] {
        std::unique_ptr<wf_sp> made(new wf_sp);
        auto status = made->processor.LoadFromSerializedProto(absl::string_view(model, n));
        if (status.ok()) sp = made.release();
        return status;
      }))
    return nullptr;
  return sp;
}

void wf_sp_free(wf_sp *sp) {
  delete sp;
}

int wf_sp_vocab(const wf_sp *sp) {
  return sp->processor.GetPieceSize();
}
int wf_sp_bos(const wf_sp *sp) {
  return sp->processor.bos_id();
}
int wf_sp_eos(const wf_sp *sp) {
  return sp->processor.eos_id();
}
int wf_sp_is_control(const wf_sp *sp, int id) {
  return sp->processor.IsControl(id);
}
int wf_sp_is_byte(const wf_sp *sp, int id) {
  return sp->processor.IsByte(id);
}
int wf_sp_is_unknown(const wf_sp *sp, int id) {
  return sp->processor.IsUnknown(id);
}

int wf_sp_piece(const wf_sp *sp, int id, wf_sp_bytes *out, wf_sp_error *error) {
  return guarded(error, [&] {
    const std::string &piece = sp->processor.IdToPiece(id);
    out->data = static_cast<char *>(copy(piece.data(), piece.size()));
    out->n = piece.size();
    return sentencepiece::util::Status();
  });
}

int wf_sp_encode(const wf_sp *sp, const char *text, size_t n, wf_sp_ids *out, wf_sp_error *error) {
  return guarded(error, [&] {
    std::vector<int> ids;
    auto status = sp->processor.Encode(absl::string_view(text, n), &ids);
    if (status.ok()) {
      out->data = static_cast<int *>(copy(ids.data(), ids.size() * sizeof(int)));
      out->n = ids.size();
    }
    return status;
  });
}

int wf_sp_train(const char *type, int64_t vocab, wf_sp_next next, void *context, wf_sp_bytes *model,
                wf_sp_error *error) {
  return guarded(error, [&] {
    const std::unordered_map<std::string, std::string> options = {
        {"model_type", type},
        {"vocab_size", std::to_string(vocab)},
        {"character_coverage", "0.9995"},
        {"byte_fallback", "true"},
        {"normalization_rule_name", "identity"},
        {"add_dummy_prefix", "false"},
        {"remove_extra_whitespaces", "false"},
        {"user_defined_symbols", "\n"},
        {"max_sentence_length", "65536"},
        {"input_sentence_size", "2000000"},
        {"shuffle_input_sentence", "true"},
        {"hard_vocab_limit", "true"},
        {"num_threads", "2"},
        {"minloglevel", "3"},
    };
    Sentences sentences(next, context);
    std::string bytes;
    auto status = sentencepiece::SentencePieceTrainer::Train(options, &sentences, &bytes);
    if (status.ok()) {
      model->data = static_cast<char *>(copy(bytes.data(), bytes.size()));
      model->n = bytes.size();
    }
    return status;
  });
}
