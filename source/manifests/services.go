package manifests

import (
	"context"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/source/objects"
)

type view struct {
	objects  policy.Objects
	services []policy.Service
}

// View returns the Services and the other objects of the last update. If the newest version of an object couldn't be
// read, View returns the version that the agent enforces. View leaves out the pods for which the function keep returns
// false. Before the first update, View returns nothing. Callers must not change the results. Any goroutine may call
// View.
func (d *Dir) View(_ context.Context, keep func(*policy.Pod) bool) (policy.Objects, []policy.Service, error) {
	v := d.view.Load()
	if v == nil {
		return policy.Objects{}, nil, nil
	}
	o := v.objects
	o.Pods = nil
	for i := range v.objects.Pods {
		if keep(&v.objects.Pods[i]) {
			o.Pods = append(o.Pods, v.objects.Pods[i])
		}
	}
	return o, v.services, nil
}

// addService reads a Service. It reports no problem if the Service can't be read, because policies don't depend on
// Services.
func (c *content) addService(o object) {
	m := o.readMeta(o.raw["metadata"], true)
	e := entry{where: o.where, object: o.kind + " " + m.name, damage: notNeeded}
	defer func() { c.entries = append(c.entries, e) }()
	if len(m.wrongName)+len(m.wrongNamespace) > 0 {
		return
	}
	service := corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: m.namespace, Name: m.name}}
	if decode(o.raw["spec"], &service.Spec) != nil || decode(o.raw["status"], &service.Status) != nil {
		return
	}
	read := objects.Service(&service)
	e.service = &read
}

func (d *Dir) services() (all []policy.Service) {
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		for _, e := range d.files[name].entries {
			if e.service != nil && !seen[e.service.String()] {
				seen[e.service.String()] = true
				all = append(all, *e.service)
			}
		}
	}
	return all
}
