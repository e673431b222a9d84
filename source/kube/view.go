package kube

import (
	"maps"
	"reflect"
	"slices"
	"sync"

	"k8s.io/client-go/tools/cache"

	"github.com/weir-net/weir/policy/ruleset"
)

// view is what policy needs of the objects of one kind, kept up as a watch tells of them. Most of what a watch tells,
// such as heartbeats, changes nothing of it.
type view[O, T any] struct {
	read func(O) (T, []ruleset.Problem)
	// follow, if not nil, says what an object is that was something else before.
	follow func(was, now T) T

	mu      sync.Mutex
	objects map[string]T // by namespace/name
	broken  map[string][]ruleset.Problem
	list    []T // of the objects, once it was asked for; nobody changes it
}

func newView[O, T any](read func(O) (T, []ruleset.Problem)) *view[O, T] {
	return &view[O, T]{read: read, objects: map[string]T{}, broken: map[string][]ruleset.Problem{}}
}

// watch has the view follow the informer; changed is called whenever something of it has changed. The returned function
// says whether the view holds all that there was at the beginning.
func (v *view[O, T]) watch(informer cache.SharedInformer, changed func()) (synced cache.InformerSynced, err error) {
	put := func(o any) {
		if v.put(o) {
			changed()
		}
	}
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: put, UpdateFunc: func(_, o any) { put(o) },
		DeleteFunc: func(o any) {
			if v.remove(o) {
				changed()
			}
		},
	})
	if err != nil {
		return nil, err
	}
	return registration.HasSynced, nil
}

// put takes the object as it is now, and says whether that changes anything.
func (v *view[O, T]) put(o any) bool {
	key, err := cache.MetaNamespaceKeyFunc(o)
	object, ok := o.(O)
	if err != nil || !ok {
		return false // no informer tells of such things
	}
	now, problems := v.read(object)
	v.mu.Lock()
	defer v.mu.Unlock()
	if was, ok := v.objects[key]; ok {
		if v.follow != nil {
			now = v.follow(was, now)
		}
		if reflect.DeepEqual(was, now) && slices.Equal(v.broken[key], problems) {
			return false
		}
	}
	v.objects[key], v.list = now, nil
	delete(v.broken, key)
	if len(problems) > 0 {
		v.broken[key] = problems
	}
	return true
}

func (v *view[O, T]) remove(o any) bool {
	key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(o)
	if err != nil {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.objects[key]; !ok {
		return false
	}
	delete(v.objects, key)
	delete(v.broken, key)
	v.list = nil
	return true
}

// all are the objects, in no order, and what of them can't be read.
func (v *view[O, T]) all() ([]T, []ruleset.Problem) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.list == nil {
		v.list = slices.AppendSeq(make([]T, 0, len(v.objects)), maps.Values(v.objects))
	}
	return v.list, slices.Concat(slices.Collect(maps.Values(v.broken))...)
}
