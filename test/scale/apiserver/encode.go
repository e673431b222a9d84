package apiserver

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"

	corev1 "k8s.io/api/core/v1"
)

type format struct{ info runtime.SerializerInfo }

func negotiate(accept string) format {
	known := scheme.Codecs.SupportedMediaTypes()
	for part := range strings.SplitSeq(accept, ",") {
		media, parameters, _ := strings.Cut(part, ";")
		info, ok := runtime.SerializerInfoForMediaType(known, strings.TrimSpace(media))
		if ok && info.StreamSerializer != nil && !strings.Contains(parameters, "as=") {
			return format{info}
		}
	}
	info, _ := runtime.SerializerInfoForMediaType(known, runtime.ContentTypeJSON)
	return format{info}
}

func (f format) streamType() string {
	if f.info.MediaType == runtime.ContentTypeProtobuf {
		return f.info.MediaType + ";stream=watch"
	}
	return f.info.MediaType
}

func answer(w http.ResponseWriter, req *http.Request, status int, o runtime.Object) {
	f := negotiate(req.Header.Get("Accept"))
	w.Header().Set("Content-Type", f.info.MediaType)
	w.WriteHeader(status)
	_ = f.info.Serializer.Encode(o, w) // fails only if the client has closed the connection
}

func fail(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.Header().Set("Content-Type", runtime.ContentTypeJSON)
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Reason: reason, Message: message, Code: int32(code),
	})
}

// sendList writes the objects one by one, so that they are never all in memory.
func (f format) sendList(w io.Writer, snap snapshot, sel selector) error {
	each := func(do func(Object) error) error {
		for i := range snap.len() {
			if o := snap.at(i); o != nil && sel.matches(o) {
				if err := do(o); err != nil {
					return err
				}
			}
		}
		return nil
	}
	meta := metav1.ListMeta{ResourceVersion: fmt.Sprint(snap.version)}
	if f.info.MediaType == runtime.ContentTypeProtobuf {
		return sendProtobufList(w, snap.kind, meta, each)
	}
	head, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	comma := ""
	if _, err := fmt.Fprintf(w, `{"kind":"%sList","apiVersion":%q,"metadata":%s,"items":[`, snap.kind.Kind,
		snap.kind.apiVersion(), head); err != nil {
		return err
	}
	if err := each(func(o Object) error {
		text, err := json.Marshal(o)
		if err == nil {
			_, err = fmt.Fprintf(w, "%s%s", comma, text)
		}
		comma = ","
		return err
	}); err != nil {
		return err
	}
	_, err = io.WriteString(w, "]}")
	return err
}

type message interface {
	Size() int
	Marshal() ([]byte, error)
}

// first and second are the tags of the fields 1 and 2 in a protobuf message, with wire type 2. A list has its metadata
// in field 1, and its items in field 2.
const (
	first  = 1<<3 | 2
	second = 2<<3 | 2
)

// sendProtobufList writes a list in protobuf. It makes each object twice: first to compute the list's length, and then
// to write the object.
func sendProtobufList(
	w io.Writer, k Kind, meta metav1.ListMeta, each func(func(Object) error) error,
) error {
	head, err := meta.Marshal()
	if err != nil {
		return err
	}
	raw := field(nil, first, head)
	size := len(raw)
	if err := each(func(o Object) error {
		n := o.(message).Size()
		size += 1 + len(binary.AppendUvarint(nil, uint64(n))) + n
		return nil
	}); err != nil {
		return err
	}
	kind := field(field(nil, first, []byte(k.apiVersion())), second, []byte(k.Kind+"List"))
	head = append(field([]byte("k8s\x00"), first, kind), second)
	head = append(binary.AppendUvarint(head, uint64(size)), raw...)
	if _, err := w.Write(head); err != nil {
		return err
	}
	return each(func(o Object) error {
		body, err := o.(message).Marshal()
		if err == nil {
			_, err = w.Write(field(nil, second, body))
		}
		return err
	})
}

func field(to []byte, tag byte, contents []byte) []byte {
	return append(binary.AppendUvarint(append(to, tag), uint64(len(contents))), contents...)
}

type selector struct {
	namespace string
	labels    labels.Selector
	fields    fields.Selector
}

func (s selector) matches(o Object) bool {
	if s.namespace != "" && o.GetNamespace() != s.namespace {
		return false
	}
	if !s.labels.Empty() && !s.labels.Matches(labels.Set(o.GetLabels())) {
		return false
	}
	if s.fields.Empty() {
		return true
	}
	set := fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()}
	if p, ok := o.(*corev1.Pod); ok {
		set["spec.nodeName"], set["status.phase"] = p.Spec.NodeName, string(p.Status.Phase)
	}
	return s.fields.Matches(set)
}
