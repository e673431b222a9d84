package kube

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	watching "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/weir-net/weir/policy"
)

// mirror stores the objects of one kind for client-go's reflector, which lists and watches them. O is the API's type of
// the objects. I is the part of an object that policy needs; only this part is stored.
//
// A list may arrive as a stream of objects. The mirror changes only when the list is complete.
type mirror[O object, I any] struct {
	mu       *sync.Mutex // the lock of the cluster to which the mirror belongs
	read     func(O) I
	put      func(policy.Name, I)
	remove   func(policy.Name)
	names    func(func(policy.Name) bool)
	replaced func()
	after    func(*policy.Name)
	complete func() // called when a list is complete; set by follow
	listed   bool
	// position is the resourceVersion up to which the mirror has all changes. It is 0 if the resourceVersion isn't a
	// number.
	position uint64
}

type object interface {
	runtime.Object
	metav1.Object
}

type streamed[I any] struct {
	policy.Name
	item I
}

// GetObjectMeta returns only a namespace and a name, because client-go's reflector reads nothing else.
func (s *streamed[I]) GetObjectMeta() metav1.Object { return streamedMeta{noMeta, s.Name} }

// streamedMeta has only a namespace and a name. A whole ObjectMeta for each object would cost memory.
type streamedMeta struct {
	*metav1.ObjectMeta
	policy.Name
}

var noMeta = &metav1.ObjectMeta{} // shared by all streamedMeta, so nothing may change it

func (m streamedMeta) GetNamespace() string { return m.Name.Namespace }
func (m streamedMeta) GetName() string      { return m.Name.Name }

func nameOf(o metav1.Object) policy.Name {
	return policy.Name{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func (m *mirror[O, I]) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		if object, ok := o.(O); ok {
			return m.stream(object), nil
		}
		return o, nil
	}
}

func (m *mirror[O, I]) stream(o O) *streamed[I] {
	m.mu.Lock()
	defer m.mu.Unlock()
	item := m.read(o)
	return &streamed[I]{nameOf(o), item}
}

func (m *mirror[O, I]) Add(o any) error { return m.Update(o) }

func (m *mirror[O, I]) Update(o any) error {
	object, ok := o.(O)
	if !ok {
		return fmt.Errorf("a watch has sent a %T", o)
	}
	m.mu.Lock()
	name := nameOf(object)
	m.put(name, m.read(object))
	m.mu.Unlock()
	m.after(&name)
	return nil
}

func (m *mirror[O, I]) Delete(o any) error {
	object, ok := o.(O)
	if !ok {
		return fmt.Errorf("a watch has sent a %T", o)
	}
	m.mu.Lock()
	name := nameOf(object)
	m.remove(name)
	m.mu.Unlock()
	m.after(&name)
	return nil
}

// UpdateResourceVersion stores the resourceVersion of the last event. The reflector calls this method of the interface
// cache.ResourceVersionUpdater after the event's change.
func (m *mirror[O, I]) UpdateResourceVersion(version string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.position = parseVersion(version)
}

// parseVersion returns a resourceVersion as a number, or 0 if it isn't one. Kubernetes promises a number since version
// 1.35 (KEP 5504). With etcd it always was a number.
func parseVersion(version string) uint64 {
	n, err := strconv.ParseUint(version, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// Replace stores the items of a complete list, and removes all other items. If the list has an object of another type,
// Replace returns an error and changes nothing.
func (m *mirror[O, I]) Replace(list []any, version string) error {
	for i, o := range list {
		switch o := o.(type) {
		case *streamed[I]:
		case O: // an API server that doesn't stream lists has sent a whole list
			list[i] = m.stream(o)
		default:
			return fmt.Errorf("a list has a %T", o)
		}
	}
	m.mu.Lock()
	gone := map[policy.Name]bool{}
	for name := range m.names {
		gone[name] = true
	}
	for i, o := range list {
		s := o.(*streamed[I])
		delete(gone, s.Name)
		m.put(s.Name, s.item)
		list[i] = nil // frees the memory early: the list of all pods is long
	}
	for name := range gone {
		m.remove(name)
	}
	if m.replaced != nil {
		m.replaced()
	}
	m.listed, m.position = true, parseVersion(version)
	m.mu.Unlock()
	if m.complete != nil {
		m.complete()
	}
	m.after(nil)
	return nil
}

// Resync does nothing, because the mirror needs no repetition of known objects.
func (m *mirror[O, I]) Resync() error { return nil }

func (m *mirror[O, I]) follow(
	ctx context.Context, s *Source, of O, list cache.ListWithContextFunc, watch cache.WatchFuncWithContext,
) {
	var streams atomic.Bool // true if the API server can stream lists
	kind := strings.TrimPrefix(fmt.Sprintf("%T", of), "*v1.")
	incomplete := fmt.Errorf("the API server has not sent all objects of kind %s within %s", kind, patience)
	m.complete = func() { s.contact.succeed(&s.contact.lists, kind) }
	lw := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watching.Interface, error) {
			// If a stream of a list ends too early, the reflector begins another stream, and reports no error. So the list
			// counts as incomplete from the first stream on.
			if o.SendInitialEvents != nil {
				s.contact.fail(&s.contact.lists, kind, incomplete, patience)
			}
			w, err := watch(ctx, o)
			if o.SendInitialEvents == nil {
				return w, err
			}
			streams.Store(!apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err))
			if err != nil {
				return nil, err
			}
			return watching.Filter(w, func(e watching.Event) (watching.Event, bool) {
				if e.Type == watching.Error && apierrors.IsInternalError(apierrors.FromObject(e.Object)) {
					// etcd before 3.4.31, and 3.5 before 3.5.13, can't stream lists (kubernetes issue 123192).
					streams.Store(false)
				}
				return e, true
			}), nil
		},
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			if streams.Load() {
				return nil, errNoStream
			}
			// With version 0, the list would come from the API server's cache. The cache may be older than the state that the
			// last agent enforced. A streamed list is never older than that state.
			if o.ResourceVersion == "0" {
				o.ResourceVersion = ""
			}
			return list(ctx, o)
		},
	}, s.Client)
	cache.NewReflectorWithOptions(lw, of, m, cache.ReflectorOptions{Name: "weir"}).RunWithContext(ctx)
}

// errNoStream is the answer to the reflector's request for a whole list if the API server can stream lists. The
// reflector then tries to stream again. A whole list of 100,000 pods would need 2 GB of memory.
var errNoStream = errors.New("the API server streams lists, but the last stream has failed")

func lister[L runtime.Object](list func(context.Context, metav1.ListOptions) (L, error)) cache.ListWithContextFunc {
	return func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return list(ctx, o) }
}
