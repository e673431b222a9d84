package kube

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// This file removes fields that policy doesn't need from events of pods and nodes, before the client decodes the
// events. Decoding a whole pod would take 40 µs and leave 20 KB of garbage. The numbers of fields are from
// generated.proto in k8s.io/api, and never change.

type kept struct {
	fields map[protowire.Number]*kept
	entry  []string
	of     string
}

const magic = "k8s\x00"

func event(kind string, object *kept) *kept {
	unknown := &kept{of: kind, fields: map[protowire.Number]*kept{1: nil, 2: object, 3: nil, 4: nil}}
	return &kept{fields: map[protowire.Number]*kept{
		1: nil,                                              // the event's type
		2: {fields: map[protowire.Number]*kept{1: unknown}}, // the event's object.raw
	}}
}

var (
	keptMeta = &kept{fields: map[protowire.Number]*kept{
		1: nil, 3: nil, 5: nil, 6: nil, // name, namespace, uid, resourceVersion
		8: nil, 9: nil, 11: nil, // creationTimestamp, deletionTimestamp, labels
		12: {entry: []string{corev1.MirrorPodAnnotationKey, metav1.InitialEventsAnnotationKey}}, // annotations
	}}
	keptContainer = &kept{fields: map[protowire.Number]*kept{1: nil, 6: nil, 24: nil}} // name, ports, restartPolicy
	keptPod       = event("Pod", &kept{fields: map[protowire.Number]*kept{
		1: keptMeta,
		2: {fields: map[protowire.Number]*kept{
			2: keptContainer, 20: keptContainer, 10: nil, 11: nil, // containers, initContainers, nodeName, hostNetwork
		}},
		3: {fields: map[protowire.Number]*kept{1: nil, 6: nil, 12: nil}}, // status: phase, podIP, podIPs
	}})
	keptNode = event("Node", &kept{fields: map[protowire.Number]*kept{
		1: keptMeta,
		2: {fields: map[protowire.Number]*kept{1: nil, 7: nil}}, // spec: podCIDR, podCIDRs
		3: {fields: map[protowire.Number]*kept{5: nil}},         // status: addresses
	}})
)

func trimmed(r *http.Request, resp *http.Response) {
	what := map[string]*kept{"/pods": keptPod, "/nodes": keptNode}[strings.TrimPrefix(r.URL.Path, "/api/v1")]
	if what == nil || r.URL.Query().Get("watch") != "true" || resp.StatusCode != http.StatusOK ||
		!strings.HasPrefix(resp.Header.Get("Content-Type"), runtime.ContentTypeProtobuf) {
		return
	}
	resp.Body = &trimmer{Closer: resp.Body, in: bufio.NewReaderSize(resp.Body, 1<<15), what: what}
}

type trimmer struct {
	io.Closer
	in    *bufio.Reader
	what  *kept
	frame []byte
	out   []byte // bytes for the client, which has read out[:at] so far
	at    int
	whole bool // true if the rest of the stream is passed on unchanged
}

// maxFrame is the length in bytes up to which a frame is trimmed. The API server's objects have at most 1.5 MB.
const maxFrame = 1 << 24

func (t *trimmer) Read(p []byte) (int, error) {
	for t.at == len(t.out) {
		if t.whole {
			return t.in.Read(p)
		}
		if err := t.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, t.out[t.at:])
	t.at += n
	return n, nil
}

func (t *trimmer) next() error {
	var length [4]byte
	if _, err := io.ReadFull(t.in, length[:]); err != nil {
		return err
	}
	t.out, t.at = append(t.out[:0], length[:]...), 0
	size := int(binary.BigEndian.Uint32(length[:]))
	if t.whole = size > maxFrame; t.whole {
		return nil
	}
	t.frame = slices.Grow(t.frame[:0], size)[:size]
	if _, err := io.ReadFull(t.in, t.frame); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if out, ok := t.what.trim(t.out, t.frame); ok {
		t.out = out
	} else {
		t.out = append(t.out, t.frame...)
	}
	binary.BigEndian.PutUint32(t.out, uint32(len(t.out)-len(length)))
	return nil
}

func (k *kept) trim(out, message []byte) (_ []byte, ok bool) {
	for len(message) > 0 {
		var f field
		if f, message, ok = nextField(message); !ok {
			return out, false
		}
		what, keep := k.fields[f.number]
		switch {
		case !keep:
		case what == nil || f.kind != protowire.BytesType:
			out = append(out, f.whole...)
		default:
			if out, ok = what.field(out, f); !ok {
				return out, false
			}
		}
	}
	return out, true
}

type field struct {
	number protowire.Number
	kind   protowire.Type
	whole  []byte
	tag    int // length of the field's tag, which is the beginning of whole
}

func nextField(message []byte) (f field, rest []byte, ok bool) {
	number, kind, tag := protowire.ConsumeTag(message)
	if tag < 0 {
		return field{}, nil, false
	}
	value := protowire.ConsumeFieldValue(number, kind, message[tag:])
	if value < 0 {
		return field{}, nil, false
	}
	return field{number, kind, message[:tag+value], tag}, message[tag+value:], true
}

func (f field) content() []byte {
	content, _ := protowire.ConsumeBytes(f.whole[f.tag:])
	return content
}

func (k *kept) field(out []byte, f field) (_ []byte, ok bool) {
	content := f.content()
	if k.entry != nil {
		if key, ok := bytesOf(content, 1); !ok || !slices.Contains(k.entry, string(key)) {
			return out, ok
		}
		return append(out, f.whole...), true
	}
	if k.of != "" {
		if !strings.HasPrefix(string(content[:min(len(content), len(magic))]), magic) {
			return out, false
		}
		types, _ := bytesOf(content[len(magic):], 1)
		if kind, _ := bytesOf(types, 2); string(kind) != k.of {
			return append(out, f.whole...), true
		}
	}
	out = append(out, f.whole[:f.tag]...)
	start := len(out)
	if k.of != "" {
		out, content = append(out, magic...), content[len(magic):]
	}
	if out, ok = k.trim(out, content); !ok {
		return out, false
	}
	// The length must precede the content, but is known only now. So the content is moved behind the length.
	size := len(out) - start
	out = append(out, make([]byte, protowire.SizeVarint(uint64(size)))...)
	copy(out[len(out)-size:], out[start:start+size])
	protowire.AppendVarint(out[:start], uint64(size))
	return out, true
}

func bytesOf(message []byte, want protowire.Number) (value []byte, ok bool) {
	for len(message) > 0 {
		var f field
		if f, message, ok = nextField(message); !ok {
			return nil, false
		}
		if f.number == want && f.kind == protowire.BytesType {
			return f.content(), true
		}
	}
	return nil, true
}
