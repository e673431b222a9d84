package apiserver

import (
	base64encoding "encoding/base64"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

type resource struct {
	kind    Kind
	base    []state // states of the Base's objects
	objects map[types.NamespacedName]Object
	log     []*event // the latest events, the oldest first
	forgot  uint64   // version of the latest event that isn't in the log any more
	watches map[*watch]bool
	sent    Sent
}

type state struct {
	version uint64
	beat    uint32
	hidden  bool // true if the object is deleted, or is in resource.objects
}

func newResource(k Kind) *resource {
	r := &resource{kind: k, objects: map[types.NamespacedName]Object{}, watches: map[*watch]bool{}, forgot: firstVersion}
	if k.Base != nil {
		r.base = make([]state, k.Base.Len())
		for i := range r.base {
			r.base[i].version = firstVersion
		}
	}
	return r
}

func (k Kind) gvk() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: k.Group, Version: k.Version, Kind: k.Kind}
}

func (r *resource) at(i int) Object { return r.kind.make(i, r.base[i]) }

func (k Kind) make(i int, s state) Object {
	o := k.Base.At(i, s.beat)
	o.SetResourceVersion(strconv.FormatUint(s.version, 10))
	o.GetObjectKind().SetGroupVersionKind(k.gvk())
	return o
}

func (r *resource) get(name types.NamespacedName) Object {
	if o := r.objects[name]; o != nil {
		return o
	}
	if r.kind.Base == nil {
		return nil
	}
	if i, ok := r.kind.Base.Find(name); ok && !r.base[i].hidden {
		return r.at(i)
	}
	return nil
}

// hide makes get and snapshot.at leave out the object with this name that the Base makes, which is the object's
// initial version. The caller has deleted the object, or keeps the object's new version in r.objects.
func (r *resource) hide(name types.NamespacedName) {
	if r.kind.Base == nil {
		return
	}
	if i, ok := r.kind.Base.Find(name); ok {
		r.base[i].hidden = true
	}
}

// snapshot has a kind's objects at one version. To save memory, it doesn't have the initial objects, but only a state
// (version and beat) for each. When a client reads an initial object, snapshot.at makes it from the state (Kind.Base).
type snapshot struct {
	kind    Kind
	version uint64
	base    []state
	others  []Object
}

// snapshot returns the kind's current objects. version must be the server's current resource version. The caller must
// have the server's lock.
func (r *resource) snapshot(version uint64) snapshot {
	s := snapshot{kind: r.kind, version: version, base: slices.Clone(r.base)}
	for _, o := range r.objects {
		s.others = append(s.others, o)
	}
	slices.SortFunc(s.others, func(a, b Object) int {
		return strings.Compare(a.GetNamespace()+"/"+a.GetName(), b.GetNamespace()+"/"+b.GetName())
	})
	return s
}

func (s snapshot) len() int { return len(s.base) + len(s.others) }

func (s snapshot) at(i int) Object {
	switch {
	case i >= len(s.base):
		return s.others[i-len(s.base)]
	case s.base[i].hidden:
		return nil
	}
	return s.kind.make(i, s.base[i])
}

func nameOf(o Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func sameType(a, b Object) bool { return reflect.TypeOf(a) == reflect.TypeOf(b) }

func base64(data []byte) string { return base64encoding.StdEncoding.EncodeToString(data) }
