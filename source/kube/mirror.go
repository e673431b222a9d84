package kube

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	watching "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/weir-net/weir/policy"
)

// mirror is the store of a reflector. It keeps only what policy needs of the objects of one kind. O is the API's
// type, and I (item) is the part of an object that policy needs.
//
// While a list streams in, each object becomes an item at once (Transformer). The mirror changes only when the
// list is complete.
type mirror[O object, I any] struct {
	mu       *sync.Mutex // the cluster's
	read     func(O) I
	put      func(policy.Name, I)
	remove   func(policy.Name)
	names    func(func(policy.Name) bool)
	replaced func()
	after    func(*policy.Name)
	listed   bool
	// position is the resourceVersion up to which the mirror has all changes. It is 0 if that is unknown.
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

// GetObjectMeta returns the namespace and the name. The reflector's own store needs no more.
func (s *streamed[I]) GetObjectMeta() metav1.Object { return streamedMeta{noMeta, s.Name} }

// streamedMeta has only a namespace and a name. A whole ObjectMeta for each item would be garbage.
type streamedMeta struct {
	*metav1.ObjectMeta
	policy.Name
}

var noMeta = &metav1.ObjectMeta{} // never changed

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

// UpdateResourceVersion stores how far the watch has come (cache.ResourceVersionUpdater). By then the mirror
// has that version's change.
func (m *mirror[O, I]) UpdateResourceVersion(version string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.position = parseVersion(version)
}

// parseVersion returns a resourceVersion as a number; 0 if it is none. Kubernetes 1.35 promises a number (KEP
// 5504), and etcd always gave one.
func parseVersion(version string) uint64 {
	n, err := strconv.ParseUint(version, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// Replace stores the items of a complete list, and removes all others. If an element has another type, the mirror
// stays as it is, and Replace returns an error.
func (m *mirror[O, I]) Replace(list []any, version string) error {
	for i, o := range list {
		switch o := o.(type) {
		case *streamed[I]:
		case O: // from an API server that doesn't stream lists
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
		list[i] = nil // may be collected as soon as possible: the list of all pods is long
	}
	for name := range gone {
		m.remove(name)
	}
	if m.replaced != nil {
		m.replaced()
	}
	m.listed, m.position = true, parseVersion(version)
	m.mu.Unlock()
	m.after(nil)
	return nil
}

// Resync does nothing: nobody has taken anything out of the mirror.
func (m *mirror[O, I]) Resync() error { return nil }

func (m *mirror[O, I]) follow(
	ctx context.Context, client any, of O, list cache.ListWithContextFunc, watch cache.WatchFuncWithContext,
) {
	var streams atomic.Bool // the API server streams lists
	lw := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watching.Interface, error) {
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
					streams.Store(false) // etcd before 3.4.31 or 3.5.13: kubernetes issue 123192
				}
				return e, true
			}), nil
		},
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			if streams.Load() {
				return nil, errNoStream
			}
			return list(ctx, o)
		},
	}, client)
	cache.NewReflectorWithOptions(lw, of, m, cache.ReflectorOptions{Name: "weir"}).RunWithContext(ctx)
}

// errNoStream keeps the reflector from asking for a list in one piece after an error of a stream. The list of
// 100,000 pods in one piece needs two gigabytes.
var errNoStream = errors.New("the API server streams lists, but the last stream has failed")

func lister[L runtime.Object](list func(context.Context, metav1.ListOptions) (L, error)) cache.ListWithContextFunc {
	return func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return list(ctx, o) }
}
